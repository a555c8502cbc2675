//! Anything that accepts settings, and the transaction over several of them.
