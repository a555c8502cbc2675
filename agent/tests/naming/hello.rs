//! ClientHellos taken apart and put together again otherwise: what other clients send, made of what a real one sent.

/// A ClientHello (RFC 8446, 4.1.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Version and random.
    head: Vec<u8>,
    session: Vec<u8>,
    pub(crate) ciphers: Vec<u8>,
    compressions: Vec<u8>,
    pub(crate) extensions: Vec<(u16, Vec<u8>)>,
}

/// The extension with the server's name (RFC 6066, 3).
pub(crate) const SERVER_NAME: u16 = 0;

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn number(&mut self, octets: usize) -> usize {
        self.take(octets).iter().fold(0, |number, octet| number << 8 | usize::from(*octet))
    }

    fn vector(&mut self, octets: usize) -> &'a [u8] {
        let length = self.number(octets);
        self.take(length)
    }
}

fn vector(octets: usize, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&length[4 - octets..], content].concat()
}

impl Hello {
    /// Takes the records of a client's first flight apart.
    pub(crate) fn of(mut records: &[u8]) -> Self {
        let mut handshake = Vec::new();
        while !records.is_empty() {
            let (header, rest) = records.split_at(5);
            assert_eq!(header[0], 22, "a handshake record");
            let (content, rest) = rest.split_at(usize::from(u16::from_be_bytes([header[3], header[4]])));
            handshake.extend(content);
            records = rest;
        }
        let mut reader = Reader(&handshake);
        assert_eq!(reader.number(1), 1, "a ClientHello");
        let mut reader = Reader(reader.vector(3));
        let head = reader.take(34).to_vec();
        let session = reader.vector(1).to_vec();
        let ciphers = reader.vector(2).to_vec();
        let compressions = reader.vector(1).to_vec();
        let mut reader = Reader(reader.vector(2));
        let mut extensions = Vec::new();
        while !reader.0.is_empty() {
            let kind = u16::try_from(reader.number(2)).unwrap();
            extensions.push((kind, reader.vector(2).to_vec()));
        }
        Self { head, session, ciphers, compressions, extensions }
    }

    /// The handshake message.
    pub(crate) fn handshake(&self) -> Vec<u8> {
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|(kind, content)| [&kind.to_be_bytes()[..], &vector(2, content)].concat())
            .collect();
        let body = [
            &self.head[..],
            &vector(1, &self.session),
            &vector(2, &self.ciphers),
            &vector(1, &self.compressions),
            &vector(2, &extensions),
        ]
        .concat();
        [&[1][..], &vector(3, &body)].concat()
    }

    /// The message in records of a version, each of at most `most` bytes.
    pub(crate) fn records(&self, version: [u8; 2], most: usize) -> Vec<u8> {
        let record = |content: &[u8]| [&[22][..], &version, &vector(2, content)].concat();
        self.handshake().chunks(most).flat_map(record).collect()
    }

    /// The place of an extension.
    pub(crate) fn place(&self, kind: u16) -> Option<usize> {
        self.extensions.iter().position(|(other, _)| *other == kind)
    }

    /// With another name, of any bytes.
    pub(crate) fn named(mut self, name: &[u8]) -> Self {
        let place = self.place(SERVER_NAME).unwrap();
        self.extensions[place].1 = vector(2, &[&[0][..], &vector(2, name)].concat());
        self
    }

    /// Without a name.
    pub(crate) fn nameless(mut self) -> Self {
        self.extensions.retain(|(kind, _)| *kind != SERVER_NAME);
        self
    }

    /// With its name in another place among the extensions.
    pub(crate) fn name_at(mut self, place: usize) -> Self {
        let name = self.extensions.remove(self.place(SERVER_NAME).unwrap());
        let place = place.min(self.extensions.len());
        self.extensions.insert(place, name);
        self
    }

    /// With another extension before all others.
    pub(crate) fn with(mut self, kind: u16, content: Vec<u8>) -> Self {
        self.extensions.insert(0, (kind, content));
        self
    }
}
