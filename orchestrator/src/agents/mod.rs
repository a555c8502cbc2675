//! The other end of the agents' uplinks: batches in, acknowledgements and pushes out.
