//! DNS beyond one datagram: over TCP, and after what is none.

use super::*;

fn prefixed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
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
    }
}
