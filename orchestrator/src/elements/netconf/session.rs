//! One NETCONF session, sans-I/O: bytes of the peer in, bytes for the peer and events out (RFC 6241, RFC 6242).
//!
//! ```text
//! new -> (our hello goes out at once) -> peer's hello -> open -> rpc / rpc-reply ... -> closed by the shell
//! ```

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use super::framing::{Deframer, Framing, FramingError};
use super::tree::{BASE, Node, XmlError, read};

/// Longest message read; replies of more than two megabytes have been seen.
pub const LONGEST_MESSAGE: usize = 16 << 20;

/// Most errors kept of one reply.
const MOST_ERRORS: usize = 32;

const BASE_1_0: &str = "urn:ietf:params:netconf:base:1.0";
const BASE_1_1: &str = "urn:ietf:params:netconf:base:1.1";

/// Why the peer is not understood. The session is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Framing.
    #[error("the device sent {0}")]
    Framing(#[from] FramingError),
    /// XML.
    #[error("the device sent {0}")]
    Xml(#[from] XmlError),
    /// A first message that is no hello, or one without an id.
    #[error("the device's first message is no NETCONF hello")]
    NoHello,
    /// No version in common.
    #[error("the device speaks no NETCONF version known here (base:1.0 and base:1.1 are)")]
    NoCommonVersion,
    /// Neither a reply nor a notification.
    #[error("the device sent a `{0}`, which is neither a reply nor a notification")]
    Unexpected(String),
}

/// One `rpc-error` (RFC 6241 section 4.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RpcError {
    /// error-tag.
    pub tag: String,
    /// error-app-tag, where given.
    pub app_tag: Option<String>,
    /// error-path, where given; often it is not.
    pub path: Option<String>,
    /// error-message, where given.
    pub message: Option<String>,
    /// Only a warning: the request was carried out.
    pub warning: bool,
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.tag)?;
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        if let Some(path) = &self.path {
            write!(f, " (at {path})")?;
        }
        Ok(())
    }
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Done; content of `data`, where there is one.
    Done(Vec<Node>),
    /// Refused, for these reasons.
    Refused(Vec<RpcError>),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The peer's hello came: requests may go.
    Open,
    /// The answer to the request of that id.
    Reply(u64, Reply),
    /// A notification; nobody subscribes yet, so it is only counted.
    Notification,
}

/// The session.
#[derive(Debug)]
pub struct Session {
    deframer: Deframer,
    framing: Framing,
    output: Vec<u8>,
    events: VecDeque<Event>,
    open: bool,
    next_id: u64,
    capabilities: BTreeSet<String>,
    number: u32,
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

impl Session {
    /// A new one; its hello is ready to go, and must go the moment the subsystem is open: a server was seen to stall on a
    /// request that came right behind a late hello.
    pub fn new() -> Self {
        let hello = format!(
            r#"<?xml version="1.0" encoding="UTF-8"?><hello xmlns="{BASE}"><capabilities><capability>{BASE_1_0}</capability><capability>{BASE_1_1}</capability></capabilities></hello>"#
        );
        Self {
            deframer: Deframer::new(LONGEST_MESSAGE),
            framing: Framing::EndOfMessage,
            output: Framing::EndOfMessage.encode(&hello),
            events: VecDeque::new(),
            open: false,
            next_id: 1,
            capabilities: BTreeSet::new(),
            number: 0,
        }
    }

    /// Takes the bytes that are to go to the peer.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// What the peer can do, as its hello says.
    pub fn capabilities(&self) -> &BTreeSet<String> {
        &self.capabilities
    }

    /// The peer announced a capability or module, with or without parameters behind it.
    pub fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|have| have.split('?').next() == Some(capability))
    }

    /// The session's id at the peer, as it stands in lock-denied errors.
    pub fn session_id(&self) -> u32 {
        self.number
    }

    /// Queues a request: `operation` is the element inside `rpc`. Returns its message id.
    pub fn request(&mut self, operation: &str) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let message = format!(
            r#"<?xml version="1.0" encoding="UTF-8"?><rpc message-id="{id}" xmlns="{BASE}">{operation}</rpc>"#
        );
        self.output.extend(self.framing.encode(&message));
        id
    }

    /// Takes bytes of the peer.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        self.deframer.push(bytes);
        while let Some(message) = self.deframer.next_message()? {
            if self.open { self.take_message(&message)? } else { self.take_hello(&message)? }
        }
        Ok(())
    }

    /// What happened since it was last asked, in order.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn take_hello(&mut self, message: &str) -> Result<(), SessionError> {
        let hello = read(message.trim_start(), |root| Node::of(root, 0))?;
        if hello.name.local != "hello" || hello.name.namespace != BASE {
            return Err(SessionError::NoHello);
        }
        self.number = hello
            .child("session-id")
            .and_then(Node::text)
            .and_then(|text| text.parse().ok())
            .ok_or(SessionError::NoHello)?;
        // A capability is a URI: read as it stands, or the part before its colon could be taken for a prefix.
        self.capabilities = read(message.trim_start(), |root| {
            Ok(root
                .descendants()
                .filter(|node| node.tag_name().name() == "capability")
                .filter_map(|node| node.text())
                .map(|text| text.trim().to_owned())
                .collect())
        })?;
        if self.has(BASE_1_1) {
            self.framing = Framing::Chunked;
            self.deframer.switch(Framing::Chunked);
        } else if !self.has(BASE_1_0) {
            return Err(SessionError::NoCommonVersion);
        }
        self.open = true;
        self.events.push_back(Event::Open);
        Ok(())
    }

    fn take_message(&mut self, message: &str) -> Result<(), SessionError> {
        let event = read(message.trim_start(), |root| {
            Ok(match root.tag_name().name() {
                "rpc-reply" => {
                    let id = root.attribute("message-id").and_then(|id| id.parse().ok());
                    Ok(Event::Reply(id.unwrap_or(0), reply(root)?))
                }
                "notification" => Ok(Event::Notification),
                other => Err(SessionError::Unexpected(other.to_owned())),
            })
        })??;
        self.events.push_back(event);
        Ok(())
    }
}

fn reply(root: roxmltree::Node<'_, '_>) -> Result<Reply, XmlError> {
    let elements = || root.children().filter(roxmltree::Node::is_element);
    let errors: Vec<RpcError> = elements()
        .filter(|node| node.tag_name().name() == "rpc-error")
        .take(MOST_ERRORS)
        .map(rpc_error)
        .collect();
    if errors.iter().any(|error| !error.warning) {
        return Ok(Reply::Refused(errors));
    }
    let data = elements().find(|node| node.tag_name().name() == "data");
    let nodes = data
        .into_iter()
        .flat_map(|data| data.children().filter(roxmltree::Node::is_element))
        .map(|node| Node::of(node, 0))
        .collect::<Result<_, _>>()?;
    Ok(Reply::Done(nodes))
}

fn rpc_error(node: roxmltree::Node<'_, '_>) -> RpcError {
    let text = |name: &str| {
        node.children()
            .find(|child| child.tag_name().name() == name)
            .and_then(|child| child.text())
            .map(|text| text.trim().chars().take(500).collect::<String>())
    };
    RpcError {
        tag: text("error-tag").unwrap_or_else(|| "operation-failed".to_owned()),
        app_tag: text("error-app-tag"),
        path: text("error-path"),
        message: text("error-message"),
        warning: text("error-severity").as_deref() == Some("warning"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello(versions: &[&str]) -> Vec<u8> {
        let capabilities: String =
            versions.iter().flat_map(|uri| ["<capability> ", uri, "\n</capability>"]).collect();
        Framing::EndOfMessage.encode(&format!(
            "<nc:hello xmlns:nc='{BASE}'><capabilities xmlns='{BASE}'>{capabilities}</capabilities><nc:session-id>7</nc:session-id></nc:hello>"
        ))
    }

    fn open(versions: &[&str]) -> Session {
        let mut session = Session::new();
        session.take_output();
        session.receive(&hello(versions)).unwrap();
        assert_eq!(session.next_event(), Some(Event::Open));
        session
    }

    #[test]
    fn the_hello_goes_first_and_framing_follows_what_both_can() {
        let mut session = Session::new();
        let ours = session.take_output();
        assert!(ours.ends_with(b"</hello>]]>]]>"));
        let mut new = open(&[BASE_1_0, BASE_1_1]);
        new.request("<get/>");
        assert!(new.take_output().starts_with(b"\n#"));
        let mut old = open(&[BASE_1_0]);
        old.request("<get/>");
        assert!(old.take_output().ends_with(b"]]>]]>"));
        assert_eq!(Session::new().receive(&hello(&["urn:other"])), Err(SessionError::NoCommonVersion));
    }

    #[test]
    fn a_capability_is_known_with_or_without_parameters() {
        let session = open(&[BASE_1_0, "urn:m?module=m&amp;revision=2020-01-01"]);
        assert!(session.has("urn:m"));
        assert!(!session.has("urn:n"));
        assert_eq!(session.session_id(), 7);
    }

    #[test]
    fn a_reply_may_hold_several_errors_and_warnings_are_no_errors() {
        let mut session = open(&[BASE_1_0]);
        let error = |severity: &str, tag: &str| {
            format!(
                "<rpc-error><error-severity>{severity}</error-severity><error-tag>{tag}</error-tag></rpc-error>"
            )
        };
        let reply = |id: u64, content: &str| {
            Framing::EndOfMessage
                .encode(&format!("<rpc-reply xmlns='{BASE}' message-id='{id}'>{content}</rpc-reply>"))
        };
        session.receive(&reply(1, &(error("error", "lock-denied") + &error("warning", "x")))).unwrap();
        session.receive(&reply(2, &(error("warning", "x") + "<ok/>"))).unwrap();
        session.receive(&reply(3, "<data><t xmlns='urn:t'>1</t></data>")).unwrap();
        let Some(Event::Reply(1, Reply::Refused(errors))) = session.next_event() else {
            panic!("not refused")
        };
        assert_eq!(errors.iter().map(|error| error.tag.as_str()).collect::<Vec<_>>(), ["lock-denied", "x"]);
        assert_eq!(session.next_event(), Some(Event::Reply(2, Reply::Done(Vec::new()))));
        assert!(matches!(session.next_event(), Some(Event::Reply(3, Reply::Done(data))) if data.len() == 1));
    }

    #[test]
    fn notifications_are_let_pass_and_anything_else_ends_the_session() {
        let mut session = open(&[BASE_1_0]);
        session.receive(&Framing::EndOfMessage.encode("<notification/>")).unwrap();
        assert_eq!(session.next_event(), Some(Event::Notification));
        assert!(session.receive(&Framing::EndOfMessage.encode("<rpc/>")).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_split_are_understood_or_refused(
            opened: bool,
            chunked: bool,
            pieces in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..60),
                    "(<rpc-reply message-id='1'>|<data>|</data>|<rpc-error>|</rpc-reply>|\\]\\]>\\]\\]>|\n#9\n|\n##\n){0,6}"
                        .prop_map(String::into_bytes),
                ],
                0..8,
            ),
        ) {
            let mut session = if opened {
                open(if chunked { &[BASE_1_0, BASE_1_1] } else { &[BASE_1_0] })
            } else {
                Session::new()
            };
            for piece in pieces {
                if session.receive(&piece).is_err() {
                    break;
                }
                while session.next_event().is_some() {}
            }
        }
    }
}
