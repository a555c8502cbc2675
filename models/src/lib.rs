//! Usher's words as types: what agent, probe and orchestrator say to each other and nothing else.
//!
//! Owns units, the kernel's records ([`wire`]) and the telemetry protocol (`telemetry`). Refuses I/O, clocks and async.
//! Without the feature `std` only [`wire`] remains, which the probe compiles for the kernel.

#![cfg_attr(not(feature = "std"), no_std)]

pub mod wire;

#[cfg(feature = "std")]
pub mod class;
#[cfg(feature = "std")]
pub mod dscp;
#[cfg(feature = "std")]
pub mod setting;
#[cfg(feature = "std")]
pub mod telemetry;
#[cfg(feature = "std")]
pub mod units;

pub use wire::{Class, Direction};
