//! Sans-I/O: bytes in, verdicts out.
