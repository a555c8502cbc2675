//! What is done for few packets, as functions of their own: global ones, which the verifier looks into once each, and not for every way that
//! leads to them. With all of it in one piece a program had three quarters of the million steps that a verifier takes, and those of Linux 6.1
//! and 6.12, which follow more ways, gave up.
//!
//! Each is there for both hooks. Global functions take numbers and the context, and give a number.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use usher_models::wire::{Direction, Dscp};

use crate::kernel::{self, Hook, Skb, Xdp};
use crate::{mark, offer, search};

/// The direction of a number.
#[inline(always)]
pub const fn way(number: u32) -> Direction {
    if number == Direction::Up as u32 { Direction::Up } else { Direction::Down }
}

/// [`search`], for packets the kernel has taken over.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn usher_search(context: *mut __sk_buff, first: u32, direction: u32) -> u32 {
    search(&Skb::of(context), first, way(direction))
}

/// [`search`], for frames in the driver.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn usher_search_xdp(context: *mut xdp_md, first: u32, direction: u32) -> u32 {
    search(&Xdp::of(context), first, way(direction))
}

/// A step of the walk that is kept. Not 0 where there is another one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn usher_step(context: *mut __sk_buff) -> u32 {
    kernel::walk().is_some_and(|walk| walk.step(&Skb::of(context))).into()
}

/// The same in the driver.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn usher_step_xdp(context: *mut xdp_md) -> u32 {
    kernel::walk().is_some_and(|walk| walk.step(&Xdp::of(context))).into()
}

/// [`offer`]. Returns nothing of use.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn usher_offer(context: *mut __sk_buff, place: u64, whose: u64, ports: u32, flow: u32) -> u32 {
    offer(&Skb::of(context), place, whose, ports, flow);
    0
}

/// The same in the driver.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn usher_offer_xdp(
    context: *mut xdp_md,
    place: u64,
    whose: u64,
    ports: u32,
    flow: u32,
) -> u32 {
    offer(&Xdp::of(context), place, whose, ports, flow);
    0
}

/// [`mark::mark`]. Returns nothing of use.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn usher_mark(
    context: *mut __sk_buff,
    ip_at: u32,
    around: u32,
    dscp: u32,
    direction: u32,
) -> u32 {
    mark::mark(&Skb::of(context), ip_at, around, Dscp::of_bits(dscp), way(direction));
    0
}

/// The same in the driver.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn usher_mark_xdp(
    context: *mut xdp_md,
    ip_at: u32,
    around: u32,
    dscp: u32,
    direction: u32,
) -> u32 {
    mark::mark(&Xdp::of(context), ip_at, around, Dscp::of_bits(dscp), way(direction));
    0
}
