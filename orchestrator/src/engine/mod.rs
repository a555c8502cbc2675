//! Facts -> moments -> decisions, sans-I/O. Time is an argument; the same inputs give the same effects.

pub mod io;
