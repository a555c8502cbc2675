//! Who is behind an address.
