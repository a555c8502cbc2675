//! What two hosts say to each other, as the IP packets of one flow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{PacketBuilder, PacketBuilderStep};

const FIRST: u32 = 4_294_960_000; // wraps within a few segments

/// The packets of one flow so far.
pub(crate) struct Talk {
    client: (IpAddr, u16),
    server: (IpAddr, u16),
    /// Bytes said by client and server.
    said: [u32; 2],
    pub(crate) packets: Vec<Vec<u8>>,
}

impl Talk {
    /// Between two hosts by IPv4.
    pub(crate) fn new(client_port: u16, server_port: u16) -> Self {
        let client = (Ipv4Addr::new(10, 0, 0, 2).into(), client_port);
        let server = (Ipv4Addr::new(192, 0, 2, 1).into(), server_port);
        Self { client, server, said: [0; 2], packets: Vec::new() }
    }

    /// By IPv6.
    pub(crate) fn v6(client_port: u16, server_port: u16) -> Self {
        let host = |last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into();
        Self { client: (host(2), client_port), server: (host(1), server_port), ..Self::new(0, 0) }
    }

    /// To another server.
    pub(crate) fn to(mut self, server: impl Into<IpAddr>) -> Self {
        self.server.0 = server.into();
        self
    }

    /// Opens a TCP connection.
    pub(crate) fn opened(mut self) -> Self {
        for (from_client, flags) in [(true, "S"), (false, "SA"), (true, "A")] {
            let sequence = if flags == "A" { FIRST } else { FIRST.wrapping_sub(1) };
            self.tcp(from_client, sequence, flags, &[]);
        }
        self
    }

    /// The client says something in its connection, the server confirms it.
    pub(crate) fn up(mut self, bytes: &[u8]) -> Self {
        self.tcp(true, FIRST.wrapping_add(self.said[0]), "PA", bytes);
        self.said[0] += u32::try_from(bytes.len()).unwrap();
        self.tcp(false, FIRST.wrapping_add(self.said[1]), "A", &[]);
        self
    }

    /// The server says something.
    pub(crate) fn down(mut self, bytes: &[u8]) -> Self {
        self.tcp(false, FIRST.wrapping_add(self.said[1]), "PA", bytes);
        self.said[1] += u32::try_from(bytes.len()).unwrap();
        self.tcp(true, FIRST.wrapping_add(self.said[0]), "A", &[]);
        self
    }

    /// The client says parts of `bytes`, in this order: from where to where.
    pub(crate) fn parts(mut self, bytes: &[u8], parts: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let begin = FIRST.wrapping_add(self.said[0]);
        for (from, to) in parts {
            self.tcp(true, begin.wrapping_add(u32::try_from(from).unwrap()), "PA", &bytes[from..to]);
        }
        self.said[0] += u32::try_from(bytes.len()).unwrap();
        self.tcp(false, FIRST.wrapping_add(self.said[1]), "A", &[]);
        self
    }

    /// The client sends a datagram.
    pub(crate) fn asks(mut self, bytes: &[u8]) -> Self {
        self.udp(true, bytes);
        self
    }

    /// The server sends a datagram.
    pub(crate) fn answers(mut self, bytes: &[u8]) -> Self {
        self.udp(false, bytes);
        self
    }

    fn ends(&self, from_client: bool) -> ((IpAddr, u16), (IpAddr, u16)) {
        if from_client { (self.client, self.server) } else { (self.server, self.client) }
    }

    fn ip(from: IpAddr, to: IpAddr) -> PacketBuilderStep<etherparse::IpHeaders> {
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
            _ => unreachable!("both hosts speak one version"),
        }
    }

    fn tcp(&mut self, from_client: bool, sequence: u32, flags: &str, bytes: &[u8]) {
        let (from, to) = self.ends(from_client);
        let mut step = Self::ip(from.0, to.0).tcp(from.1, to.1, sequence, 65_000);
        for flag in flags.chars() {
            step = match flag {
                'S' => step.syn(),
                'P' => step.psh(),
                _ => step.ack(FIRST.wrapping_add(self.said[usize::from(from_client)])),
            };
        }
        let mut packet = Vec::new();
        step.write(&mut packet, bytes).unwrap();
        self.packets.push(packet);
    }

    fn udp(&mut self, from_client: bool, bytes: &[u8]) {
        let (from, to) = self.ends(from_client);
        let mut packet = Vec::new();
        Self::ip(from.0, to.0).udp(from.1, to.1).write(&mut packet, bytes).unwrap();
        self.packets.push(packet);
    }
}
