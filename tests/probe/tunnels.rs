//! A packet's bytes are its subscriber's to the byte, whatever is around it: the kernel's own count of every encapsulation that is looked
//! through, by each of the probe's programs, and of all of them in each other, as deep as it goes.

use std::fmt::Debug;

use usher_agent::probe::{Pattern, Trial, Verdict, Xdp};
use usher_models::wire::{Cell, Class, Direction};
use usher_tests::frames::{Around, Before, linked};

use crate::on_a_kernel;
use crate::rig::*;

use Before::{Label, Pppoe, Pseudowire, ServiceTag, Tag};
use Direction::Up;

/// Tags, labels, sessions and tunnels that are looked through, all in all.
const LAYERS: usize = 8;

/// The Ethernet header's bytes.
const LINK: usize = 14;

/// The subscriber's packets: of both IP versions, with and without what may follow the first header.
fn inner_packets(direction: Direction) -> [Vec<u8>; 4] {
    let v4 = tcp(direction, 4_000, b"a payload").split_off(LINK);
    let mut options = v4.clone();
    options[0] = 0x47;
    options[3] += 8;
    options.splice(20..20, [1; 8]);
    let v6 = udp6(direction, 5_000, b"another one").split_off(LINK);
    let mut extension = v6.clone();
    extension[5] += 8;
    // Hop-by-hop options before UDP.
    let next = std::mem::replace(&mut extension[6], 0);
    extension.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
    [v4, options, v6, extension]
}

/// Every tunnel, with all that it may have.
fn tunnels() -> Vec<Around> {
    let mut all = vec![Around::IpInIp, Around::GreBridge, Around::Vxlan];
    for bits in 0..8 {
        let [checksum, key, sequence] = [4, 2, 1].map(|bit| bits & bit != 0);
        all.push(Around::Gre { checksum, key, sequence });
        all.extend((0..3).map(|extensions| Around::Gtpu { flags: bits, extensions }));
    }
    all
}

/// One of each kind, as large as it gets.
const KINDS: [Around; 5] = [
    Around::IpInIp,
    Around::GreBridge,
    Around::Vxlan,
    Around::Gre { checksum: true, key: true, sequence: true },
    Around::Gtpu { flags: 7, extensions: 2 },
];

/// A probe that is handed frames, and what it should have counted of the subscriber in each direction.
struct Counting {
    probe: Whole,
    counted: [Cell; 2],
    _tun: Temporary,
    _rig: Rig,
}

impl Counting {
    fn begin() -> Self {
        let mut rig = Rig::new();
        // The programs for packets without a link-layer header come with the first interface of such.
        let tun = Temporary(rig.interface.replace("ut", "ui"));
        ip(&["tuntap", "add", "dev", &tun.0, "mode", "tun"]);
        ip(&["link", "set", &tun.0, "addrgenmode", "none", "up"]);
        rig.settings.interfaces.push(Pattern::new(&tun.0));
        rig.settings.xdp = Xdp::Auto;
        let probe = rig.probe();
        Self { probe, counted: [passed(0, 0); 2], _tun: tun, _rig: rig }
    }

    /// Hands a frame to a program; a packet of so many bytes is counted for the subscriber.
    fn hand(&mut self, trial: &Trial<'_>, bytes: usize, what: &dyn Debug) {
        let Trial { direction, frame, .. } = *trial;
        let verdict = self.probe.trial(trial).expect("runs").verdict;
        let counted = &mut self.counted[direction.index()];
        counted.bytes += bytes as u64;
        counted.packets += 1;
        let found = cell(&self.probe, SLOT, Class::Other, direction);
        assert_eq!(
            (verdict, found),
            (Verdict::Pass, *counted),
            "{direction:?} of {bytes} bytes in {what:?}: {frame:02x?}"
        );
    }

    /// Hands each of the subscriber's packets to every program that a frame of it may come to: with `before` and in all of `around`, the
    /// outermost first, which are of IPv6 or IPv4 by turns.
    fn packets_in(&mut self, before: &[Before], around: &[Around]) {
        for direction in Direction::BOTH {
            for (inner, first_v6) in inner_packets(direction).iter().flat_map(|it| [(it, false), (it, true)])
            {
                let mut packet = inner.clone();
                for (place, around) in around.iter().rev().enumerate() {
                    packet = around.wrap(&packet, first_v6 == place.is_multiple_of(2));
                }
                let what = (before, around, first_v6);
                let mut frame = linked(before, &packet);
                self.hand(&Trial::once(direction, &frame), inner.len(), &what);
                if direction == Up {
                    self.hand(&Trial { in_driver: true, ..Trial::once(Up, &frame) }, inner.len(), &what);
                }
                if before.is_empty() {
                    let trial = Trial { no_link_layer: true, ..Trial::once(direction, &packet) };
                    self.hand(&trial, inner.len(), &what);
                }
                // What fills a short frame up is nobody's.
                frame.extend([0; 9]);
                self.hand(&Trial::once(direction, &frame), inner.len(), &what);
            }
        }
    }

    /// Nothing was counted anywhere else.
    fn end(self) {
        let [up, down] = self.counted;
        assert_eq!(everything(&self.probe), (up.packets + down.packets, up.bytes + down.bytes));
        self.probe.detach().expect("detaches");
    }
}

#[test]
fn what_is_before_a_packet_is_not_counted() {
    on_a_kernel!("what_is_before_a_packet_is_not_counted", tcx);
    let mut counting = Counting::begin();
    for before in [
        &[][..],
        &[Tag],
        &[ServiceTag, Tag],
        &[Tag; LAYERS],
        &[Label],
        &[Label; 2],
        &[Label; LAYERS],
        &[Pseudowire],
        &[Label, Pseudowire],
        &[Tag, Label, Pseudowire, ServiceTag, Tag],
        &[Pppoe],
        &[ServiceTag, Tag, Pppoe],
        &[Label, Pseudowire, Tag, Pppoe],
    ] {
        counting.packets_in(before, &[]);
    }
    counting.end();
}

#[test]
fn of_a_tunnel_the_packet_inside_is_counted() {
    on_a_kernel!("of_a_tunnel_the_packet_inside_is_counted", tcx);
    let mut counting = Counting::begin();
    for around in tunnels() {
        counting.packets_in(&[], &[around]);
        counting.packets_in(&[ServiceTag, Tag, Pppoe], &[around]);
        counting.packets_in(&[Label, Pseudowire, Tag], &[around]);
    }
    counting.end();
}

#[test]
fn of_tunnels_in_each_other_the_innermost_packet_is_counted() {
    on_a_kernel!("of_tunnels_in_each_other_the_innermost_packet_is_counted", tcx);
    let mut counting = Counting::begin();
    for first in KINDS {
        for second in KINDS {
            counting.packets_in(&[], &[first, second]);
            for third in KINDS {
                // Four packets and all layers that there may be.
                counting.packets_in(&[ServiceTag, Tag, Label, Label, Label], &[first, second, third]);
            }
        }
    }
    counting.end();
}
