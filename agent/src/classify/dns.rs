//! DNS messages (RFC 1035).
//!
//! Owns the reading of one message, by the `domain` crate. Refuses to believe a record that the question does not lead to.

use std::net::IpAddr;
use std::time::Duration;

use domain::base::iana::{Class, Opcode, Rtype};
use domain::base::{Message as Wire, Name, ParsedName};
use domain::rdata::svcb::value::Ech;
use domain::rdata::{A, Aaaa, Cname, Https};

use super::{ech, name};

/// DNS.
pub const PORT: u16 = 53;
/// Multicast DNS (RFC 6762).
pub const MULTICAST_PORT: u16 = 5353;
/// Link-local multicast name resolution (RFC 4795).
pub const LINK_LOCAL_PORT: u16 = 5355;

/// Octets of a message's header.
const HEADER: usize = 12;
/// Records of a message that are looked at; the rest of a longer one is passed over.
const MAX_RECORDS: usize = 64;
/// Addresses a message may add to the memory.
const MAX_ADDRESSES: usize = 32;

/// What one message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// By which an answer is matched to its question.
    pub id: u16,
    /// Whether it answers.
    pub response: bool,
    /// The name asked for, if it is a host name.
    pub question: Option<Box<str>>,
    /// The name asked for, if it is text, to be shown: lower case, printable ASCII without spaces.
    pub asked: Option<Box<str>>,
    /// Addresses of that name, each with its time to live; along the chain of aliases (CNAME) alone.
    pub addresses: Vec<(IpAddr, Duration)>,
    /// The name under which a hello to it may hide it (RFC 9848, 4: the `ech` parameter of its HTTPS record).
    pub outer: Option<Box<str>>,
}

impl Message {
    /// Reads one message; `None` for bytes that are none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let message = Wire::from_octets(bytes).ok()?;
        let header = message.header();
        if !matches!(header.opcode(), Opcode::QUERY | Opcode::NOTIFY | Opcode::UPDATE | Opcode::STATUS) {
            return None;
        }
        let mut read = Self {
            id: header.id(),
            response: header.qr(),
            question: None,
            asked: None,
            addresses: Vec::new(),
            outer: None,
        };
        let questions = message.header_counts().qdcount();
        if questions == 0 {
            // Multicast DNS announces without a question; in unicast there is always one, save in a refusal.
            return (read.response && message.answer().is_ok()).then_some(read);
        }
        let Some(question) = message.first_question() else {
            return (is_bare_question(bytes) && has_extended_label(bytes)).then_some(read);
        };
        read.question = host_name(question.qname());
        read.asked = read.question.clone().or_else(|| presented(question.qname()));
        if read.response && questions == 1 && header.rcode() == domain::base::iana::Rcode::NOERROR {
            (read.addresses, read.outer) = led_to(&message, question.qname());
        }
        Some(read)
    }
}

/// Whether a datagram to whatever port is a question, as resolvers on ports of their own are asked (DNSCrypt's certificates,
/// local forwarders): one question for a host name, of the Internet's class, and nothing else but the asker's options.
pub fn is_certain_question(datagram: &[u8]) -> bool {
    is_bare_question(datagram)
        && Wire::from_octets(datagram).is_ok_and(|message| asks_for_host(&message) == Some(datagram.len()))
}

/// Where a message ends that asks for a host name and carries no record but options (RFC 6891, 6.1.2).
fn asks_for_host(message: &Wire<&[u8]>) -> Option<usize> {
    let mut questions = message.question();
    let question = questions.next()?.ok()?;
    let is_host = host_name(question.qname()).is_some_and(|name| name.contains('.'));
    let mut records = (is_host && question.qclass() == Class::IN).then(|| message.additional())?.ok()?;
    for record in records.by_ref() {
        record.ok().filter(|record| record.rtype() == Rtype::OPT)?;
    }
    Some(records.pos())
}

/// Whether a header is one of a client that asks one thing: nothing is set that only answers and updates have set.
fn is_bare_question(message: &[u8]) -> bool {
    // Of the flags: recursion desired; authentic data, checking disabled. At most one record, an additional one.
    matches!(message, [_, _, 0 | 1, 0 | 0x10 | 0x20 | 0x30, 0, 1, 0, 0, 0, 0, 0, 0 | 1, ..])
}

/// Whether the name asked for has a label that is neither text nor a pointer (RFC 6891, 5): none are in use, so that the
/// question has no spelling, but a question it is.
fn has_extended_label(message: &[u8]) -> bool {
    let mut at = HEADER;
    while let Some(length @ 1..) = message.get(at) {
        match length >> 6 {
            0 => at += 1 + usize::from(*length),
            kind => return kind != 3,
        }
    }
    false
}

/// Addresses with their times to live, and an outer name.
type Found = (Vec<(IpAddr, Duration)>, Option<Box<str>>);

/// The addresses, and the outer name, that the answers to `question` lead to. A record that cannot be read ends the list.
fn led_to(message: &Wire<&[u8]>, question: &ParsedName<&[u8]>) -> Found {
    let (mut found, mut outer) = (Vec::new(), None);
    let Ok(answers) = message.answer() else { return (found, outer) };
    let mut chain: Vec<Name<Vec<u8>>> = vec![domain::base::name::ToName::to_vec(question)];
    for record in answers.take(MAX_RECORDS) {
        let Ok(record) = record else { break };
        if record.class() != Class::IN || !chain.iter().any(|known| *known == record.owner()) {
            continue;
        }
        let ttl = record.ttl().into_duration();
        let address: Option<IpAddr> = match record.rtype() {
            Rtype::A => record.to_record::<A>().ok().flatten().map(|a| a.data().addr().into()),
            Rtype::AAAA => record.to_record::<Aaaa>().ok().flatten().map(|aaaa| aaaa.data().addr().into()),
            Rtype::CNAME => {
                if let Ok(Some(alias)) = record.to_record::<Cname<_>>() {
                    chain.push(domain::base::name::ToName::to_vec(alias.data().cname()));
                }
                None
            }
            Rtype::HTTPS => {
                if let Ok(Some(service)) = record.to_record::<Https<_, _>>() {
                    let configs = service.data().params().first::<Ech<_>>();
                    outer =
                        outer.or_else(|| configs.and_then(|configs| ech::public_name(configs.as_slice())));
                }
                None
            }
            _ => None,
        };
        if let Some(address) = address {
            found.push((address, ttl));
            if found.len() >= MAX_ADDRESSES {
                break;
            }
        }
    }
    (found, outer)
}

/// A DNS name as a canonical host name.
fn host_name(wire: &ParsedName<&[u8]>) -> Option<Box<str>> {
    let mut text = Vec::with_capacity(name::MAX_NAME + 1);
    for label in wire {
        if label.is_root() {
            break;
        }
        if label.as_slice().contains(&b'.') {
            return None;
        }
        if !text.is_empty() {
            text.push(b'.');
        }
        text.extend_from_slice(label.as_slice());
    }
    name::canonical(&text)
}

/// A DNS name that is text, if not a host's; `None` for the root and for names of other bytes, which have no one spelling.
fn presented(wire: &ParsedName<&[u8]>) -> Option<Box<str>> {
    let mut text = String::new();
    for label in wire {
        if label.is_root() {
            break;
        }
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label.as_slice() {
            if !byte.is_ascii_graphic() || *byte == b'.' {
                return None;
            }
            text.push(char::from(byte.to_ascii_lowercase()));
        }
    }
    (!text.is_empty()).then(|| text.into_boxed_str())
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use domain::base::MessageBuilder;
    use domain::base::iana::Rcode;
    use proptest::prelude::*;

    use super::*;

    fn wire_name(name: &str) -> Name<Vec<u8>> {
        name.parse().unwrap()
    }

    /// A question for `name`.
    pub(crate) fn query(name: &str) -> Vec<u8> {
        let mut question = MessageBuilder::new_vec().question();
        question.push((wire_name(name), Rtype::A)).unwrap();
        let mut bytes = question.finish();
        bytes[..2].copy_from_slice(&7_u16.to_be_bytes());
        bytes
    }

    /// An answer to a question for `name`.
    pub(crate) fn answer(name: &str, addresses: &[[u8; 4]], ttl: u32) -> Vec<u8> {
        answer_with_aliases(name, &[], addresses, ttl)
    }

    /// An answer whose addresses are those of the last alias.
    fn answer_with_aliases(name: &str, aliases: &[(&str, &str)], addresses: &[[u8; 4]], ttl: u32) -> Vec<u8> {
        let asked = Wire::from_octets(query(name)).unwrap();
        let mut builder = MessageBuilder::new_vec().start_answer(&asked, Rcode::NOERROR).unwrap();
        for (from, to) in aliases {
            builder.push((wire_name(from), ttl, Cname::new(wire_name(to)))).unwrap();
        }
        let owner = aliases.last().map_or(name, |(_, to)| to);
        for address in addresses {
            builder.push((wire_name(owner), ttl, A::new(Ipv4Addr::from(*address)))).unwrap();
        }
        builder.finish()
    }

    /// An HTTPS record for `name` with these configurations of encrypted hellos (RFC 9460, 2.2), as an answer.
    pub(crate) fn https(name: &str, configs: &[u8]) -> Vec<u8> {
        let length = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
        let mut bytes = query(name);
        (bytes[2], bytes[7]) = (0x81, 1);
        bytes.extend([0xc0, 12, 0, 65, 0, 1, 0, 0, 0, 60]);
        bytes.extend(length(configs.len() + 7));
        bytes.extend([0, 1, 0, 0, 5]);
        bytes.extend(length(configs.len()));
        bytes.extend(configs);
        bytes
    }

    #[test]
    fn an_answer_is_that_of_the_name_asked_for_along_its_aliases() {
        let bytes = answer_with_aliases(
            "WWW.Streams.example",
            &[("www.streams.example", "cdn.test"), ("CDN.test", "edge.cdn.test")],
            &[[192, 0, 2, 1], [192, 0, 2, 2]],
            60,
        );
        let message = Message::parse(&bytes).unwrap();
        assert!(message.response);
        assert_eq!(message.question.as_deref(), Some("www.streams.example"));
        let minute = Duration::from_mins(1);
        let expected = [[192, 0, 2, 1], [192, 0, 2, 2]].map(|address| (IpAddr::from(address), minute));
        assert_eq!(message.addresses, expected);
    }

    #[test]
    fn a_name_that_is_no_host_name_is_shown_and_not_remembered() {
        let mut bytes = query("A*B.c.test");
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.asked.as_deref(), message.question), (Some("a*b.c.test"), None));
        let at = bytes.iter().position(|byte| *byte == b'c').unwrap();
        for byte in [0xff, b' ', b'.', 0] {
            bytes[at] = byte;
            assert_eq!(Message::parse(&bytes).unwrap().asked, None);
        }
        let host = Message::parse(&query("A.test")).unwrap();
        assert_eq!((host.asked.as_deref(), host.question.as_deref()), (Some("a.test"), Some("a.test")));
    }

    #[test]
    fn a_question_of_labels_without_a_spelling_is_one_without_a_name() {
        let mut bytes = query("abc.example.test");
        for kind in [0x40, 0x80] {
            bytes[16] = kind | 7;
            let message = Message::parse(&bytes).unwrap();
            assert_eq!((message.response, message.question, message.asked), (false, None, None));
        }
        bytes[7] = 1;
        assert_eq!(Message::parse(&bytes), None, "with an answer it is nothing anybody sends");
    }

    #[test]
    fn a_certain_question_is_told_from_everything_that_is_less() {
        let bare = query("2.dnscrypt-cert.resolver.test");
        let mut with_options = bare.clone();
        with_options[11] = 1;
        with_options.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        for question in [&bare, &with_options] {
            assert!(is_certain_question(question));
            for other in [
                [&question[..], &[0]].concat(),
                question[..question.len() - 1].to_vec(),
                [&question[..2], &[0x80], &question[3..]].concat(),
                [&question[..5], &[2], &question[6..]].concat(),
                [&question[..12], &[0x41], &question[13..]].concat(),
            ] {
                assert!(!is_certain_question(&other), "{other:?}");
            }
        }
        assert!(!is_certain_question(&query("localhost")));
        assert!(!is_certain_question(&answer("a.test", &[[192, 0, 2, 1]], 60)));
    }

    #[test]
    fn records_the_question_does_not_lead_to_are_not_believed() {
        let bytes = answer_with_aliases("a.test", &[("b.test", "c.test")], &[[192, 0, 2, 1]], 60);
        assert_eq!(Message::parse(&bytes).unwrap().addresses, []);
    }

    #[test]
    fn of_thousands_of_records_a_few_are_taken() {
        let addresses: Vec<[u8; 4]> =
            (0..2_000_u16).map(|n| [192, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]).collect();
        let message = Message::parse(&answer("a.test", &addresses, 60)).unwrap();
        assert_eq!(message.addresses.len(), MAX_ADDRESSES);
    }

    #[test]
    fn a_query_and_a_refusal_are_dns_without_addresses() {
        let query = Message::parse(&query("a.test")).unwrap();
        assert_eq!((query.id, query.response, query.question.as_deref()), (7, false, Some("a.test")));
        for short in [&b""[..], &[0; 11], &[0; 12]] {
            assert_eq!(Message::parse(short), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Message::parse(&bytes);
            is_certain_question(&bytes);
        }

        #[test]
        fn a_damaged_answer_is_read_within_bounds(
            at in any::<proptest::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut bytes = answer_with_aliases("a.b.test", &[("a.b.test", "c.test")], &[[192, 0, 2, 1]; 5], 60);
            let place = at.index(bytes.len());
            bytes[place] = byte;
            bytes.truncate(cut.index(bytes.len() + 1));
            if let Some(message) = Message::parse(&bytes) {
                prop_assert!(message.addresses.len() <= MAX_ADDRESSES);
            }
        }
    }
}
