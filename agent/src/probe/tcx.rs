//! Which programs TCX runs on an interface, told by their numbers (bpf(2), BPF_PROG_QUERY; a question of CAP_NET_ADMIN's).
//!
//! Refuses to open them, as the library does where it is asked: to open a program by its number the kernel wants CAP_SYS_ADMIN, and the
//! agent runs without.

use std::io;

use usher_models::wire::Direction;

/// The most programs that the kernel takes at a place (linux/bpf_mprog.h, BPF_MPROG_MAX).
const MOST_PROGRAMS: usize = 64;

/// The arguments of BPF_PROG_QUERY (linux/bpf.h, union bpf_attr), whole: the kernel writes into the last one, however many were given.
#[repr(C)]
#[derive(Default)]
struct Query {
    interface: u32,
    hook: u32,
    flags: u32,
    attach_flags: u32,
    /// Where the numbers go.
    programs: u64,
    /// How many there is room for; then, how many there are.
    count: u32,
    zero: u32,
    attach_flags_of_programs: u64,
    links: u64,
    attach_flags_of_links: u64,
    revision: u64,
}

const _: () = assert!(size_of::<Query>() == 64);

/// The numbers of the programs on what comes in at an interface of this network namespace (up) or goes out (down), in the order in which
/// they run.
pub(super) fn programs(interface: u32, direction: Direction) -> io::Result<Vec<u32>> {
    const BPF_PROG_QUERY: libc::c_long = 16;
    const BPF_TCX_INGRESS: u32 = 46;
    const BPF_TCX_EGRESS: u32 = 47;
    let mut numbers = vec![0_u32; MOST_PROGRAMS];
    let mut query = Query {
        interface,
        hook: match direction {
            Direction::Up => BPF_TCX_INGRESS,
            Direction::Down => BPF_TCX_EGRESS,
        },
        programs: numbers.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(numbers.len()).unwrap_or(0),
        ..Query::default()
    };
    #[expect(unsafe_code, reason = "the library opens every program that it is asked about")]
    // SAFETY: both outlive the call; the kernel writes no more numbers than it was told there is room for, and of the arguments none beyond
    // the last of these.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    numbers.truncate(usize::try_from(query.count).unwrap_or(0));
    Ok(numbers)
}
