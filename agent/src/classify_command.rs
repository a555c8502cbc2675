//! `usher-agent classify`: what the flows of capture files are.
