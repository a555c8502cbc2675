//! What OpenSSL's and curl's clients say when they are asked for a name: recorded here on loopback, as they say it now.
//!
//! Owns the other end of their dialogues: servers that know only the words up to the request for TLS, and proxies only those
//! up to the first bytes that they should pass on.

use std::io::{self, BufRead as _, BufReader, Read as _, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use usher_models::wire::Direction;

use crate::rows::{self, ETHERNET, Frame};
use crate::traffic::{End, SEGMENT, Segment};
use crate::wrap::{Bytes, Content, ethernet};

const NAME: &str = "asked.a-name.example.org";
/// How long a client may take to say something.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was said, in order.
type Transcript = Vec<(Direction, Vec<u8>)>;

/// A step of a server in a dialogue.
enum Step {
    /// Says this.
    Say(&'static [u8]),
    /// Hears lines, or elements where the word begins one, up to that with this word in it, and says this.
    Until(&'static str, &'static [u8]),
    /// Hears as many bytes.
    Hear(usize),
}

/// A server that keeps a dialogue until the client has said its hello.
struct Server {
    listener: TcpListener,
}

impl Server {
    fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// What is said to the whole of a ClientHello, or of a request.
    fn record(self, mut client: Child, steps: &[Step]) -> Transcript {
        let (accepted, waiting) = std::sync::mpsc::channel();
        std::thread::spawn(move || accepted.send(self.listener.accept()));
        let Ok(connection) = waiting.recv_timeout(PATIENCE) else {
            panic!("no client came: {:?}", client.try_wait());
        };
        let (stream, _) = connection.unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let transcript = dialogue(&stream, steps);
        client.kill().unwrap();
        client.wait().unwrap();
        transcript.unwrap()
    }
}

fn dialogue(stream: &TcpStream, steps: &[Step]) -> io::Result<Transcript> {
    let mut said = Transcript::new();
    let mut reader = BufReader::new(stream);
    let say = |said: &mut Transcript, bytes: &[u8]| {
        if !bytes.is_empty() {
            said.push((Direction::Down, bytes.to_vec()));
        }
        (&mut &*stream).write_all(bytes)
    };
    for step in steps {
        match step {
            Step::Say(bytes) => say(&mut said, bytes)?,
            Step::Until(word, then) => loop {
                let mut line = Vec::new();
                // XMPP ends elements and not lines.
                reader.read_until(if word.starts_with('<') { b'>' } else { b'\n' }, &mut line)?;
                if line.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                said.push((Direction::Up, line.clone()));
                if String::from_utf8_lossy(&line).to_uppercase().contains(&word.to_uppercase()) {
                    say(&mut said, then)?;
                    break;
                }
            },
            Step::Hear(count) => {
                let mut bytes = vec![0; *count];
                reader.read_exact(&mut bytes)?;
                said.push((Direction::Up, bytes));
            }
        }
    }
    let mut hello = vec![0; 5];
    reader.read_exact(&mut hello)?;
    let length = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
    assert_eq!(hello[0], 22, "a handshake record and not {hello:02x?} after {said:02x?}");
    hello.resize(5 + length, 0);
    reader.read_exact(&mut hello[5..])?;
    said.push((Direction::Up, hello));
    Ok(said)
}

/// The name and the way to it of a connection on which this was said.
fn named(transcript: &Transcript) -> (Option<String>, Option<String>) {
    let client: End = (IpAddr::from([10, 0, 0, 2]), 40_000);
    let server: End = (IpAddr::from([192, 0, 2, 1]), 4_433);
    let syn = |acknowledgement, sequence| Segment { sequence, syn: true, acknowledgement, bytes: &[] };
    let mut packets = vec![syn(None, 99).packet(client, server), syn(Some(100), 899).packet(server, client)];
    let (mut up, mut down) = (100, 900);
    for (direction, bytes) in transcript {
        for bytes in bytes.chunks(SEGMENT) {
            let length = u32::try_from(bytes.len()).unwrap();
            if *direction == Direction::Up {
                let segment = Segment { sequence: up, syn: false, acknowledgement: Some(down), bytes };
                packets.push(segment.packet(client, server));
                up += length;
            } else {
                let segment = Segment { sequence: down, syn: false, acknowledgement: Some(up), bytes };
                packets.push(segment.packet(server, client));
                down += length;
            }
        }
    }
    let frames: Vec<Frame> = packets
        .into_iter()
        .enumerate()
        .map(|(at, ip)| Frame { at: at as u64, bytes: ethernet(Content::Ip(Bytes::whole(ip))) })
        .collect();
    let mut rows = rows::of_frames(ETHERNET, &frames);
    assert_eq!(rows.len(), 1);
    let row = rows.remove(0);
    (row.name, row.via)
}

/// The tool's version; `None`, said on standard error, where it is missing.
fn tool(name: &'static str, argument: &str, test: &str) -> Option<String> {
    let output = Command::new(name).arg(argument).output().ok().filter(|output| output.status.success());
    if output.is_none() {
        let line = format!("SKIPPED {test}: {name} is not installed\n");
        // Past the test runner's own buffer, which hides what passing tests print.
        io::stderr().write_all(line.as_bytes()).unwrap();
        assert!(
            std::env::var_os("USHER_NO_SKIP").is_none_or(|value| value != "1"),
            "no test may be left out"
        );
    }
    Some(String::from_utf8_lossy(&output?.stdout).into_owned())
}

fn spawn(program: &str, arguments: &[&str]) -> Child {
    Command::new(program)
        .args(arguments)
        .env_remove("http_proxy")
        .env_remove("https_proxy")
        .env_remove("all_proxy")
        .env_remove("no_proxy")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What `openssl s_client` says with these arguments.
fn openssl(arguments: &[&str], steps: &[Step]) -> Transcript {
    let server = Server::new();
    let to = format!("127.0.0.1:{}", server.port());
    let client = spawn("openssl", &[&["s_client", "-connect", &to, "-servername", NAME], arguments].concat());
    server.record(client, steps)
}

const SNI: &str = "sni";

#[test]
fn openssls_hellos_are_named_in_every_version_and_group() {
    let test = "openssls_hellos_are_named_in_every_version_and_group";
    if tool("openssl", "version", test).is_none() {
        return;
    }
    // With the hybrid group (draft-ietf-tls-ecdhe-mlkem), where this build knows it, a hello takes two segments.
    let listed = Command::new("openssl").args(["list", "-kem-algorithms"]).output().unwrap();
    let hybrid = String::from_utf8_lossy(&listed.stdout).contains("X25519MLKEM768");
    let mut all: Vec<&[&str]> = vec![
        &[],
        &["-tls1_3"],
        &["-tls1_2"],
        &["-groups", "P-256"],
        &["-groups", "X25519:P-521:X448"],
        &["-groups", "ffdhe8192"],
        &["-alpn", "h2,http/1.1"],
        &["-cipher", "ALL:@SECLEVEL=0"],
        &["-status"],
        &["-no_ticket"],
    ];
    if hybrid {
        all.push(&["-groups", "X25519MLKEM768:X25519"]);
    }
    for arguments in all {
        let transcript = openssl(arguments, &[]);
        assert_eq!(named(&transcript), (Some(NAME.to_owned()), Some(SNI.to_owned())), "{arguments:?}");
    }
}

#[test]
fn openssls_hellos_are_named_after_the_request_for_tls() {
    let test = "openssls_hellos_are_named_after_the_request_for_tls";
    if tool("openssl", "version", test).is_none() {
        return;
    }
    for (protocol, steps) in [
        (
            "smtp",
            vec![
                Step::Say(b"220 mail.example ESMTP\r\n"),
                Step::Until("EHLO", b"250-mail.example\r\n250 STARTTLS\r\n"),
                Step::Until("STARTTLS", b"220 go ahead\r\n"),
            ],
        ),
        (
            "lmtp",
            vec![
                Step::Say(b"220 mail.example LMTP\r\n"),
                Step::Until("LHLO", b"250-mail.example\r\n250 STARTTLS\r\n"),
                Step::Until("STARTTLS", b"220 go ahead\r\n"),
            ],
        ),
        ("pop3", vec![Step::Say(b"+OK ready\r\n"), Step::Until("STLS", b"+OK begin\r\n")]),
        (
            "imap",
            vec![
                Step::Say(b"* OK ready\r\n"),
                Step::Until("CAPABILITY", b"* CAPABILITY IMAP4rev1 STARTTLS\r\n. OK done\r\n"),
                Step::Until("STARTTLS", b". OK begin\r\n"),
            ],
        ),
        ("ftp", vec![Step::Say(b"220 ready\r\n"), Step::Until("AUTH TLS", b"234 begin\r\n")]),
        (
            "nntp",
            vec![
                Step::Say(b"200 ready\r\n"),
                Step::Until("CAPABILITIES", b"101 these:\r\nSTARTTLS\r\n.\r\n"),
                Step::Until("STARTTLS", b"382 begin\r\n"),
            ],
        ),
        (
            "sieve",
            vec![
                Step::Say(b"\"IMPLEMENTATION\" \"x\"\r\n\"STARTTLS\"\r\nOK\r\n"),
                Step::Until("STARTTLS", b"OK begin\r\n"),
            ],
        ),
        (
            "irc",
            vec![Step::Until("STARTTLS", b":irc.example 670 nick :STARTTLS successful\r\n")],
        ),
        (
            "xmpp",
            vec![
                Step::Until(
                    "<stream",
                    b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>\
                      <stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>"),
                Step::Until("<starttls", b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"),
            ],
        ),
        ("postgres", vec![Step::Hear(8), Step::Say(b"S")]),
        (
            "mysql",
            vec![
                // A greeting of protocol 10 (MySQL, Protocol::HandshakeV10) that offers TLS.
                Step::Say(
                    b"\x4a\0\0\0\x0a8.0.30\0\x09\0\0\0abcdefgh\0\xff\xff\xff\x02\0\xff\xdf\x15\0\0\0\0\0\0\0\0\0\0abcdefghijkl\0caching_sha2_password\0",
                ),
                Step::Hear(36),
            ],
        ),
        ("ldap", vec![Step::Hear(31), Step::Say(b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\0\x04\0\x04\0")]),
    ] {
        let transcript = openssl(&["-starttls", protocol], &steps);
        assert_eq!(named(&transcript), (Some(NAME.to_owned()), Some(SNI.to_owned())), "{protocol}");
    }
}

/// What curl says with these arguments, in which `{}` is the place of the server.
fn curl(arguments: &[&str], steps: &[Step]) -> Transcript {
    let server = Server::new();
    let place = format!("127.0.0.1:{}", server.port());
    let arguments: Vec<String> = arguments.iter().map(|argument| argument.replace("{}", &place)).collect();
    let mut all = vec!["--silent", "--insecure", "--max-time", "20"];
    all.extend(arguments.iter().map(String::as_str));
    server.record(spawn("curl", &all), steps)
}

#[test]
fn curls_hellos_are_named_through_proxies() {
    if tool("curl", "--version", "curls_hellos_are_named_through_proxies").is_none() {
        return;
    }
    let url = format!("https://{NAME}/");
    let resolved = format!("{NAME}:443:192.0.2.7");
    let granted = || Step::Say(b"\x05\0\0\x01\0\0\0\0\0\0");
    for (arguments, steps, via) in [
        (vec!["--connect-to", "::{}"], vec![], SNI),
        (vec!["--haproxy-protocol", "--connect-to", "::{}"], vec![Step::Until("PROXY", b"")], SNI),
        (
            vec!["--proxy", "http://{}"],
            vec![
                Step::Until("CONNECT", b""),
                Step::Until("Proxy-Connection", b""),
                Step::Hear(2),
                Step::Say(b"HTTP/1.1 200 Connection established\r\n\r\n"),
            ],
            "http",
        ),
        (
            vec!["--socks5-hostname", "{}"],
            vec![Step::Hear(4), Step::Say(b"\x05\0"), Step::Hear(4 + 1 + NAME.len() + 2), granted()],
            "socks",
        ),
        (
            vec!["--socks5", "{}", "--resolve", &resolved],
            vec![Step::Hear(4), Step::Say(b"\x05\0"), Step::Hear(10), granted()],
            SNI,
        ),
        (
            vec!["--socks4a", "{}"],
            vec![Step::Hear(8 + 1 + NAME.len() + 1), Step::Say(b"\0\x5a\0\0\0\0\0\0")],
            "socks",
        ),
        (
            vec!["--socks4", "{}", "--resolve", &resolved],
            vec![Step::Hear(9), Step::Say(b"\0\x5a\0\0\0\0\0\0")],
            SNI,
        ),
    ] {
        let transcript = curl(&[&arguments[..], &[&url]].concat(), &steps);
        let (name, how) = named(&transcript);
        // A name given to a proxy may have its port after it.
        let name = name.as_deref().map(|name| name.trim_end_matches(":443"));
        assert_eq!((name, how.as_deref()), (Some(NAME), Some(via)), "{arguments:?}: {transcript:02x?}");
    }
}

#[test]
fn curls_hellos_are_named_after_the_request_for_tls() {
    let Some(version) = tool("curl", "--version", "curls_hellos_are_named_after_the_request_for_tls") else {
        return;
    };
    for (scheme, steps) in [
        (
            "smtp",
            vec![
                Step::Say(b"220 mail.example ESMTP\r\n"),
                Step::Until("EHLO", b"250-mail.example\r\n250 STARTTLS\r\n"),
                Step::Until("STARTTLS", b"220 go ahead\r\n"),
            ],
        ),
        (
            "pop3",
            vec![
                Step::Say(b"+OK ready\r\n"),
                Step::Until("CAPA", b"+OK\r\nSTLS\r\n.\r\n"),
                Step::Until("STLS", b"+OK begin\r\n"),
            ],
        ),
        (
            "imap",
            vec![
                Step::Say(b"* OK ready\r\n"),
                Step::Until("CAPABILITY", b"* CAPABILITY IMAP4rev1 STARTTLS\r\nA001 OK done\r\n"),
                Step::Until("STARTTLS", b"A002 OK begin\r\n"),
            ],
        ),
        ("ftp", vec![Step::Say(b"220 ready\r\n"), Step::Until("AUTH", b"234 begin\r\n")]),
    ] {
        // Builds differ in what they speak.
        if !version.split_whitespace().any(|known| known == scheme) {
            continue;
        }
        let url = format!("{scheme}://{NAME}/");
        let transcript = curl(&["--ssl-reqd", "--connect-to", "::{}", &url], &steps);
        assert_eq!(named(&transcript), (Some(NAME.to_owned()), Some(SNI.to_owned())), "{scheme}");
    }
}
