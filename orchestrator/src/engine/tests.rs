//! The engine driven by hand-made time.
