//! Questions to the kernel's network configuration (rtnetlink(7)): which interfaces there are, when they change, and what is left of a
//! clsact qdisc.
//!
//! Asks the kernel and not /sys: in a network namespace entered without its own mounts, /sys shows another one's interfaces.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage as Route;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp};
use netlink_packet_route::tc::{TcHandle, TcHeader, TcMessage};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use usher_models::wire::Direction;

use super::interfaces::{Interface, Link};

/// What the kernel puts into one answer at the most (NLMSG_GOODSIZE times the largest dump's allocation).
const ANSWER_BYTES: usize = 1 << 16;
/// How long the kernel may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The multicast group of links that come, go and change (RTMGRP_LINK).
const LINK_GROUP: u32 = 1;
/// What is done once for so many changes as come within this time: a thousand sessions that begin are one look.
const TOGETHER: Duration = Duration::from_millis(50);

/// All interfaces of this network namespace.
pub(super) fn interfaces() -> io::Result<Vec<Interface>> {
    let mut interfaces = Vec::new();
    ask(Route::GetLink(LinkMessage::default()), NLM_F_DUMP, |answer| {
        if let Route::NewLink(link) = answer {
            interfaces.extend(interface(&link));
        }
    })?;
    Ok(interfaces)
}

fn interface(message: &LinkMessage) -> Option<Interface> {
    let (mut name, mut mtu) = (None, 0);
    let (mut master, mut over, mut elsewhere, mut pair) = (None, None, false, false);
    // Of a kind is what software makes.
    let mut frames_of_the_wire = true;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(it) => name = Some(it.clone()),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::Controller(index) => master = Some(*index),
            LinkAttribute::Link(index) => over = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
                // A pair's other end is no layer below it.
                frames_of_the_wire = kind.is_none_or(|kind| *kind == InfoKind::Veth);
                pair = matches!(kind, Some(InfoKind::Veth | InfoKind::Netkit | InfoKind::Vxcan));
            }
            _ => {}
        }
    }
    let index = message.header.index;
    Some(Interface {
        index,
        name: name?,
        link: Link::of(message.header.link_layer_type.into()),
        mtu,
        master: master.filter(|master| *master != 0),
        over: over.filter(|over| *over != 0 && *over != index && !elsewhere && !pair),
        frames_of_the_wire,
    })
}

/// The number of the program in an interface's driver (native XDP).
pub(super) fn program_in_driver(interface: u32) -> io::Result<Option<u32>> {
    let mut message = LinkMessage::default();
    message.header.index = interface;
    let mut program = None;
    ask(Route::GetLink(message), NLM_F_ACK, |answer| {
        let Route::NewLink(link) = answer else { return };
        let parts = link.attributes.iter().filter_map(|attribute| match attribute {
            LinkAttribute::Xdp(parts) => Some(parts),
            _ => None,
        });
        program = parts.flatten().fold(program, |found, part| match part {
            LinkXdp::DrvProgId(id) => Some(*id),
            _ => found,
        });
    })?;
    Ok(program)
}

/// Removes the clsact qdisc of an interface if no filter is left in it.
pub(super) fn remove_empty_clsact(interface: u32) -> io::Result<()> {
    for direction in Direction::BOTH {
        if filters(interface, direction)?.next().is_some() {
            return Ok(());
        }
    }
    let mut message = TcMessage::with_index(number(interface)?);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: 0xffff, minor: 0 };
    ask(Route::DelQueueDiscipline(message), NLM_F_ACK, |_| {}).map(|_| ())
}

/// Whether a clsact qdisc has a filter at this place for what comes in at an interface (up) or goes out (down).
pub(super) fn has_filter(
    interface: u32,
    direction: Direction,
    (priority, handle): (u16, u32),
) -> io::Result<bool> {
    let mut found = filters(interface, direction)?;
    Ok(found.any(|header| header.info >> 16 == u32::from(priority) && u32::from(header.handle) == handle))
}

/// The filters of a clsact qdisc; none where there is no such qdisc.
fn filters(interface: u32, direction: Direction) -> io::Result<impl Iterator<Item = TcHeader>> {
    let minor = match direction {
        Direction::Up => TcHandle::MIN_INGRESS,
        Direction::Down => TcHandle::MIN_EGRESS,
    };
    let mut message = TcMessage::with_index(number(interface)?);
    message.header.parent = TcHandle { major: 0xffff, minor };
    let mut filters = Vec::new();
    ask(Route::GetTrafficFilter(message), NLM_F_DUMP, |answer| {
        if let Route::NewTrafficFilter(filter) = answer {
            filters.push(filter.header);
        }
    })?;
    Ok(filters.into_iter())
}

fn number(interface: u32) -> io::Result<i32> {
    i32::try_from(interface).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Sends a request and takes its answers, to the last. Says how many the library did not understand.
pub(super) fn ask(request: Route, flags: u16, mut take: impl FnMut(Route)) -> io::Result<usize> {
    let mut strange = 0;
    let socket = socket(0)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    rustix::net::send(&socket, &bytes, SendFlags::empty())?;
    let mut room = vec![0; ANSWER_BYTES];
    loop {
        let (length, _) = rustix::net::recv(&socket, room.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = room.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let size = rest.first_chunk().map_or(0, |size| u32::from_ne_bytes(*size)) as usize;
            let whole = rest.get(..size).filter(|whole| whole.len() >= HEADER_BYTES);
            let whole =
                whole.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an answer is cut short"))?;
            match NetlinkMessage::<Route>::deserialize(whole) {
                Ok(message) => match message.payload {
                    NetlinkPayload::InnerMessage(answer) => take(answer),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => return Ok(strange),
                    _ => {}
                },
                // Of one interface among many: the others are told all the same.
                Err(error) => {
                    tracing::debug!("an answer about the network is not understood: {error}");
                    strange += 1;
                }
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Bytes of a message's header (struct nlmsghdr).
const HEADER_BYTES: usize = 16;

fn socket(groups: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | if groups == 0 { SocketFlags::empty() } else { SocketFlags::NONBLOCK };
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// Tells when interfaces have come, gone or changed.
#[derive(Debug)]
pub struct LinkEvents {
    socket: AsyncFd<OwnedFd>,
}

impl LinkEvents {
    /// Listens from now on. Needs a tokio runtime.
    pub fn listen() -> io::Result<Self> {
        let socket = socket(LINK_GROUP)?;
        #[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
        // SAFETY: an owned descriptor that is never replaced while the runtime has it.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket })
    }

    /// Waits for a change; all that come about the same time are one. Loses none when cancelled: at the worst one is told twice.
    pub async fn changed(&mut self) {
        // A socket that cannot be waited for any more tells nothing; the agent still looks once a minute.
        let Ok(mut ready) = self.socket.readable().await else { return std::future::pending().await };
        tokio::time::sleep(TOGETHER).await;
        let mut room = vec![0; ANSWER_BYTES];
        // What they say is read from the kernel by a look. An overrun is a change, too.
        while !matches!(
            rustix::net::recv(self.socket.get_ref(), room.as_mut_slice(), RecvFlags::DONTWAIT),
            Err(rustix::io::Errno::AGAIN)
        ) {}
        ready.clear_ready();
    }
}
