//! Sans-I/O: drained counters in, usage batches out.
