//! The same packets from libpcap: a live interface or a file.
