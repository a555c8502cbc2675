//! Messages, channels, the tap page.
