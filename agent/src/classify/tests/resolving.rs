//! What DNS tells about the flows after it: in datagrams, over TCP, and after what is none.

use super::*;

fn prefixed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

#[test]
fn an_address_learnt_by_dns_names_a_flow_that_carries_no_name() {
    let mut classifier = classifier();
    let (asked, answered) = resolve(&mut classifier, 7, "seg.streams.example", 60);
    let Observation::Named(verdict) = &asked else { panic!("{asked:?}") };
    assert_eq!((verdict.class, verdict.name.as_deref()), (Class::System, Some("seg.streams.example")));
    assert_eq!(asked.instruction(), Some((Class::System, true)), "the answer is wanted");
    assert_eq!(answered, Observation::Again { class: Class::System, sampling: true });

    let quic = key(17, SERVER, 6_000, 443);
    let Observation::Named(verdict) = classifier.observe(&udp(quic, 7, Direction::Up, at(2), b"\xc0quic"))
    else {
        panic!("not named")
    };
    assert_eq!((verdict.class, verdict.via), (Class::Video, Via::Dns));
    assert!(verdict.confidence < SURE);

    // Another subscriber's flow to the same address knows nothing of it, nor does this one's after the session.
    let others = key(17, SERVER, 6_001, 443);
    assert!(gave_up(&classifier.observe(&udp(others, 8, Direction::Up, at(2), b"x"))));
    classifier.forget(7);
    let later = key(17, SERVER, 6_002, 443);
    assert!(gave_up(&classifier.observe(&udp(later, 7, Direction::Up, at(3), b"x"))));
}

#[test]
fn an_unknown_name_learnt_by_dns_is_of_the_web_on_ports_of_the_web_alone() {
    let mut classifier = classifier();
    resolve(&mut classifier, 7, "host.unheard.test", 60);
    for (port, class) in [(443, Class::Web), (27_015, Class::Other)] {
        let observation =
            classifier.observe(&udp(key(17, SERVER, 6_000, port), 7, Direction::Up, at(1), b"x"));
        assert_eq!(observation.instruction(), Some((class, true)), "its bytes may prove more");
        assert!(matches!(observation, Observation::Named(_)));
    }
}

#[test]
fn an_answer_is_believed_if_it_was_asked_for_and_comes_from_a_server() {
    let forged = answer("seg.streams.example", &[SERVER], 60);
    let (unicast, multicast) = (key(17, RESOLVER, 5_000, 53), key(17, RESOLVER, 5_353, 5_353));
    let mut other_port = unicast;
    other_port.subscriber_port += 1;
    let asked = query("seg.streams.example");
    let asked_otherwise = query("pages.example");
    for (packets, why) in [
        (vec![(unicast, Direction::Down, &forged)], "nobody asked"),
        (vec![(other_port, Direction::Up, &asked), (unicast, Direction::Down, &forged)], "not on this flow"),
        (
            vec![(unicast, Direction::Up, &asked_otherwise), (unicast, Direction::Down, &forged)],
            "not for this",
        ),
        (vec![(unicast, Direction::Up, &asked), (unicast, Direction::Up, &forged)], "said by the subscriber"),
        (vec![(multicast, Direction::Up, &asked), (multicast, Direction::Down, &forged)], "multicast"),
    ] {
        let mut classifier = classifier();
        for (flow, direction, message) in packets {
            classifier.observe(&udp(flow, 7, direction, at(0), message));
        }
        let flow = key(17, SERVER, 6_000, 443);
        let observation = classifier.observe(&udp(flow, 7, Direction::Up, at(1), b"x"));
        assert!(gave_up(&observation), "{why}: {observation:?}");
    }
}

#[test]
fn what_is_no_dns_on_its_port_is_not_of_the_system() {
    let mut classifier = classifier();
    let flow = key(17, RESOLVER, 5_000, 53);
    let observed = [(); 5].map(|()| classifier.observe(&udp(flow, 7, Direction::Up, at(0), b"tunnel")));
    assert_eq!(observed[..3], [const { Observation::NeedMore }; 3]);
    assert_eq!(observed[3], Observation::GiveUp { keeps_sampling: false });
    assert_eq!(observed[4], Observation::Again { class: Class::Other, sampling: false });
    assert!(classifier.counters().contains(&("malformed_dns", 5)));
}

#[test]
fn another_protocol_on_its_port_is_known_by_its_bytes() {
    let wireguard = [&[1, 0, 0, 0][..], &[7; 144]].concat();
    for (subscriber_port, remote_port) in [(40_000, dns::PORT), (dns::MULTICAST_PORT, 443)] {
        let flow = key(17, SERVER, subscriber_port, remote_port);
        let observed = classifier().observe(&udp(flow, 7, Direction::Up, at(0), &wireguard));
        let Observation::Named(verdict) = observed else { panic!("{observed:?}") };
        assert_eq!((verdict.app.as_deref(), verdict.via), (Some("wireguard"), Via::Signature));
        let mut classifier = classifier();
        let observed = quic::tests::datagrams()
            .map(|datagram| classifier.observe(&udp(flow, 7, Direction::Up, at(0), &datagram)));
        let verdict = only_verdict(&observed).unwrap();
        assert_eq!((verdict.name.as_deref(), verdict.class), (Some("seg.streams.example"), Class::Video));
        assert_eq!(classifier.held()[..2], [("streams", 0), ("stream_bytes", 0)]);
    }
}

#[test]
fn a_hello_on_its_tcp_port_is_read() {
    let hello = client_hello("seg.streams.example", true);
    let ports = [(40_000, dns::PORT), (dns::MULTICAST_PORT, 443)];
    for ((subscriber_port, remote_port), cut) in
        ports.into_iter().flat_map(|ports| [1, 3, 50].map(|cut| (ports, cut)))
    {
        let flow = key(6, SERVER, subscriber_port, remote_port);
        let mut classifier = classifier();
        let (first, second) = hello.split_at(cut);
        let segments = [
            Segment::syn(99),
            Segment::up(100, first),
            Segment::up(100 + u32::try_from(cut).unwrap(), second),
            Segment::down(&[22, 3, 3, 0, 90, 2, 0, 0]),
        ];
        let observed = segments.map(|segment| classifier.observe(&segment.sample_of(flow, at(0))));
        let verdict = only_verdict(&observed).unwrap();
        assert_eq!((verdict.name.as_deref(), verdict.class), (Some("seg.streams.example"), Class::Video));
        assert_eq!(observed.last().unwrap().instruction(), Some((Class::Video, false)));
        assert_eq!(classifier.held()[..2], [("streams", 0), ("stream_bytes", 0)]);
    }
}

#[test]
fn anonymous_addresses_share_no_answers() {
    let mut classifier = classifier();
    resolve(&mut classifier, ANONYMOUS, "seg.streams.example", 60);
    let own = key(17, SERVER, 6_000, 443);
    let named = classifier.observe(&udp(own, ANONYMOUS, Direction::Up, at(1), b"x"));
    assert!(matches!(named, Observation::Named(_)));
    let mut other = own;
    other.subscriber[15] = 99;
    let observation = classifier.observe(&udp(other, ANONYMOUS, Direction::Up, at(1), b"x"));
    assert!(gave_up(&observation), "{observation:?}");
}

#[test]
fn answers_over_tcp_name_flows_as_those_in_datagrams_do() {
    let mut classifier = classifier();
    let flow = key(6, RESOLVER, 5_000, 53);
    let asked = prefixed(&query("seg.streams.example"));
    let answered = prefixed(&answer("seg.streams.example", &[SERVER], 60));
    let (first, second) = answered.split_at(9);
    let rest = Segment { sequence: 909, ..Segment::down(second) };
    let observations: Vec<Observation> = [
        Segment::syn(99),
        Segment::up(100, &asked[..2]),
        Segment::up(102, &asked[2..]),
        Segment::down(first),
        rest,
    ]
    .iter()
    .map(|segment| classifier.observe(&segment.sample_of(flow, at(0))))
    .collect();
    let verdict = only_verdict(&observations).unwrap();
    assert_eq!((verdict.via, verdict.class, verdict.keeps_sampling), (Via::Dns, Class::System, true));
    assert_eq!(verdict.name.as_deref(), Some("seg.streams.example"));
    let named = classifier.observe(&udp(key(17, SERVER, 6_000, 443), 7, Direction::Up, at(1), b"x"));
    assert_eq!(named.instruction(), Some((Class::Video, true)));
    // The connection's end ends the sampling, and holds nothing.
    let end = Segment { fin: true, ..Segment::up(500, b"") };
    let last = classifier.observe(&end.sample_of(flow, at(2)));
    assert_eq!(last, Observation::Again { class: Class::System, sampling: false });
    assert_eq!(classifier.held()[..2], [("streams", 0), ("stream_bytes", 0)]);
}

#[test]
fn a_conversation_that_was_told_about_ends_silently() {
    let mut classifier = classifier();
    let flow = key(6, RESOLVER, 5_000, 53);
    let asked = Segment::up(100, &prefixed(&query("a.test")));
    assert!(matches!(classifier.observe(&asked.sample_of(flow, at(0))), Observation::Named(_)));
    assert_eq!(classifier.expire(at(60_000)), []);
    assert_eq!(classifier.held()[..2], [("streams", 0), ("stream_bytes", 0)]);
    let later = Segment::up(500, &prefixed(&query("b.test")));
    let again = Observation::Again { class: Class::System, sampling: false };
    assert_eq!(classifier.observe(&later.sample_of(flow, at(60_001))), again);
    let mut classifier = super::classifier();
    classifier.observe(&asked.sample_of(flow, at(0)));
    assert_eq!(classifier.finish(), []);
}

#[test]
fn another_protocol_on_its_tcp_port_gives_up() {
    let mut classifier = classifier();
    let flow = key(6, RESOLVER, 5_000, 53);
    let other = Segment::up(100, b"\0\x01?");
    assert!(gave_up(&classifier.observe(&other.sample_of(flow, at(0)))));
}

#[test]
fn a_message_after_a_damaged_one_is_still_dns() {
    let mut classifier = classifier();
    let flow = key(17, RESOLVER, 5_000, 53);
    assert_eq!(classifier.observe(&udp(flow, 7, Direction::Up, at(0), b"damaged")), Observation::NeedMore);
    let observed = classifier.observe(&udp(flow, 7, Direction::Up, at(0), &query("a.test")));
    assert!(matches!(observed, Observation::Named(_)));
    assert_eq!(classifier.held()[..2], [("streams", 0), ("stream_bytes", 0)]);
}

#[test]
fn multicast_questions_carry_the_name_asked() {
    for port in [dns::MULTICAST_PORT, dns::LINK_LOCAL_PORT] {
        let flow = key(17, [224, 0, 0, 251], 5_353, port);
        let observed = classifier().observe(&udp(flow, 7, Direction::Up, at(0), &query("_ipp._tcp.local")));
        let Observation::Named(verdict) = observed else { panic!("{observed:?}") };
        assert_eq!((verdict.name.as_deref(), verdict.class), (Some("_ipp._tcp.local"), Class::System));
        assert!(!verdict.keeps_sampling, "what is multicast is never believed");
    }
}
