//! The two framings of NETCONF over SSH: end-of-message (RFC 6242 section 4.3) and chunked (section 4.2). Sans-I/O.

/// What ends a message before both sides have said base:1.1.
const END_OF_MESSAGE: &[u8] = b"]]>]]>";

/// What ends a message in chunked framing.
const END_OF_CHUNKS: &[u8] = b"\n##\n";

/// Longest chunk header: `LF # 4294967295 LF`.
const LONGEST_HEADER: usize = 13;

/// Bytes that are no framing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// A message longer than was agreed to hold.
    #[error("a message of more than {limit} bytes")]
    TooLong {
        /// The bound.
        limit: usize,
    },
    /// Something else where a chunk begins.
    #[error("bytes that are no chunk header (RFC 6242 section 4.2)")]
    BadChunk,
    /// Not UTF-8.
    #[error("a message that is not UTF-8")]
    NotText,
}

/// Which framing is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Until the hellos are exchanged, and for good with a base:1.0 peer.
    EndOfMessage,
    /// After the hellos where both said base:1.1.
    Chunked,
}

impl Framing {
    /// A message as it goes on the wire.
    pub fn encode(self, message: &str) -> Vec<u8> {
        match self {
            Self::EndOfMessage => [message.as_bytes(), END_OF_MESSAGE].concat(),
            Self::Chunked => {
                let header = format!("\n#{}\n", message.len());
                [header.as_bytes(), message.as_bytes(), END_OF_CHUNKS].concat()
            }
        }
    }
}

/// Takes bytes as they come and gives whole messages.
#[derive(Debug)]
pub struct Deframer {
    framing: Framing,
    limit: usize,
    input: Vec<u8>,
    /// Bytes at the start of `input` known to hold no end of message.
    searched: usize,
    /// Chunks of the message under way.
    message: Vec<u8>,
    /// Bytes of the present chunk still to come.
    chunk_left: usize,
}

impl Deframer {
    /// For messages of at most `limit` bytes, in end-of-message framing at first.
    pub fn new(limit: usize) -> Self {
        Self {
            framing: Framing::EndOfMessage,
            limit,
            input: Vec::new(),
            searched: 0,
            message: Vec::new(),
            chunk_left: 0,
        }
    }

    /// What follows is framed so.
    pub fn switch(&mut self, framing: Framing) {
        self.framing = framing;
        self.searched = 0;
    }

    /// Takes bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// The next whole message; `None`: more bytes are needed. After an error the peer is not understood any more.
    pub fn next_message(&mut self) -> Result<Option<String>, FramingError> {
        match self.framing {
            Framing::EndOfMessage => self.next_delimited(),
            Framing::Chunked => self.next_chunked(),
        }
    }

    fn next_delimited(&mut self) -> Result<Option<String>, FramingError> {
        let found = self.input[self.searched..]
            .windows(END_OF_MESSAGE.len())
            .position(|window| window == END_OF_MESSAGE)
            .map(|at| at + self.searched);
        let length = found.unwrap_or(self.input.len());
        if length > self.limit {
            return Err(FramingError::TooLong { limit: self.limit });
        }
        let Some(end) = found else {
            // The delimiter may have begun in the last bytes.
            self.searched = self.input.len().saturating_sub(END_OF_MESSAGE.len() - 1);
            return Ok(None);
        };
        let rest = self.input.split_off(end + END_OF_MESSAGE.len());
        let mut message = std::mem::replace(&mut self.input, rest);
        message.truncate(end);
        self.searched = 0;
        text(message).map(Some)
    }

    fn next_chunked(&mut self) -> Result<Option<String>, FramingError> {
        loop {
            let taken = self.chunk_left.min(self.input.len());
            self.message.extend(self.input.drain(..taken));
            self.chunk_left -= taken;
            if self.chunk_left > 0 {
                return Ok(None);
            }
            let Some(end) = self.input.iter().take(LONGEST_HEADER).skip(2).position(|&byte| byte == b'\n')
            else {
                let plausible = self.input.iter().zip(b"\n#").all(|(have, want)| have == want);
                return if plausible && self.input.len() < LONGEST_HEADER {
                    Ok(None)
                } else {
                    Err(FramingError::BadChunk)
                };
            };
            let header: Vec<u8> = self.input.drain(..end + 3).collect();
            if header == END_OF_CHUNKS {
                if self.message.is_empty() {
                    return Err(FramingError::BadChunk);
                }
                return text(std::mem::take(&mut self.message)).map(Some);
            }
            self.chunk_left = chunk_size(&header).ok_or(FramingError::BadChunk)?;
            if self.message.len().saturating_add(self.chunk_left) > self.limit {
                return Err(FramingError::TooLong { limit: self.limit });
            }
        }
    }
}

/// `LF # size LF`, where size is 1 to 4294967295 without leading zeros.
fn chunk_size(header: &[u8]) -> Option<usize> {
    let digits = header.strip_prefix(b"\n#")?.strip_suffix(b"\n")?;
    if !digits.first().is_some_and(|first| (b'1'..=b'9').contains(first)) {
        return None;
    }
    let size: u32 = std::str::from_utf8(digits)
        .ok()
        .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?
        .parse()
        .ok()?;
    usize::try_from(size).ok()
}

fn text(message: Vec<u8>) -> Result<String, FramingError> {
    String::from_utf8(message).map_err(|_| FramingError::NotText)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn deframer(framing: Framing) -> Deframer {
        let mut deframer = Deframer::new(1 << 16);
        deframer.switch(framing);
        deframer
    }

    fn all(deframer: &mut Deframer) -> Result<Vec<String>, FramingError> {
        std::iter::from_fn(|| deframer.next_message().transpose()).collect()
    }

    #[test]
    fn the_example_of_the_standard_is_read() {
        let mut deframer = deframer(Framing::Chunked);
        deframer.push(b"\n#4\n<rpc\n#18\n message-id=\"102\"\n\n#3\n/>\n\n##\n");
        assert_eq!(all(&mut deframer).unwrap(), ["<rpc message-id=\"102\"\n/>\n"]);
    }

    #[test]
    fn what_is_no_chunk_is_refused_at_once() {
        for wrong in [
            "hello",
            "\n#0\n",
            "\n#01\nx",
            "\n#x\n",
            "\n##\n",
            "\n#42949672960000",
            "\n#4294967296\n",
            "\n#-1\n",
        ] {
            let mut deframer = deframer(Framing::Chunked);
            deframer.push(wrong.as_bytes());
            assert_eq!(all(&mut deframer), Err(FramingError::BadChunk), "{wrong:?}");
        }
    }

    #[test]
    fn a_message_beyond_the_bound_is_refused_before_it_is_held() {
        let mut chunked = deframer(Framing::Chunked);
        chunked.push(b"\n#4294967295\n");
        assert_eq!(chunked.next_message(), Err(FramingError::TooLong { limit: 1 << 16 }));
        let mut delimited = deframer(Framing::EndOfMessage);
        delimited.push(&vec![b'x'; (1 << 16) + 1]);
        assert_eq!(delimited.next_message(), Err(FramingError::TooLong { limit: 1 << 16 }));
    }

    proptest! {
        #[test]
        fn messages_survive_framing_in_any_split(
            messages in proptest::collection::vec("[^\\]]{1,50}", 1..5),
            chunked: bool,
            size in 1_usize..20,
        ) {
            let framing = if chunked { Framing::Chunked } else { Framing::EndOfMessage };
            let wire: Vec<u8> = messages.iter().flat_map(|message| framing.encode(message)).collect();
            let mut deframer = deframer(framing);
            let mut read = Vec::new();
            for piece in wire.chunks(size) {
                deframer.push(piece);
                read.extend(all(&mut deframer).unwrap());
            }
            prop_assert_eq!(read, messages);
        }

        #[test]
        fn any_bytes_in_any_split_are_read_or_refused(
            pieces in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..40),
                    "(\n#[0-9#]{0,12}\n?|\\]\\]>|abc){0,4}".prop_map(String::into_bytes),
                ],
                0..10,
            ),
            chunked: bool,
        ) {
            let mut deframer = deframer(if chunked { Framing::Chunked } else { Framing::EndOfMessage });
            for piece in pieces {
                deframer.push(&piece);
                if all(&mut deframer).is_err() {
                    break;
                }
            }
        }
    }
}
