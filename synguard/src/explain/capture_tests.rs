use super::*;

/// Numbers as a machine of either byte order writes them.
#[derive(Clone, Copy)]
struct Order {
    big: bool,
}

const ORDERS: [Order; 2] = [Order { big: false }, Order { big: true }];

impl Order {
    fn u16(self, n: u16) -> [u8; 2] {
        if self.big {
            n.to_be_bytes()
        } else {
            n.to_le_bytes()
        }
    }

    fn u32(self, n: u32) -> [u8; 4] {
        if self.big {
            n.to_be_bytes()
        } else {
            n.to_le_bytes()
        }
    }

    fn words(self, words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| self.u32(*word)).collect()
    }

    fn pcap(self, magic: u32, link: u32) -> Vec<u8> {
        let version = [self.u16(2), self.u16(4)].concat();
        [
            self.words(&[magic]),
            version,
            self.words(&[0, 0, 262_144, link]),
        ]
        .concat()
    }

    fn record(self, seconds: u32, fraction: u32, length: u32, bytes: &[u8]) -> Vec<u8> {
        let header = self.words(&[seconds, fraction, bytes.len() as u32, length]);
        [&header[..], bytes].concat()
    }

    /// A block of a pcapng file.
    fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(4), 0);
        let length = self.u32(body.len() as u32 + 12);
        [&self.u32(kind)[..], &length, &body, &length].concat()
    }

    fn section(self) -> Vec<u8> {
        let version = [self.u16(1), self.u16(0)].concat();
        let body = [&self.words(&[0x1a2b_3c4d])[..], &version, &[0xff; 8]].concat();
        self.block(0x0a0d_0d0a, &body)
    }

    /// A device, with `if_tsresol` if there is one.
    fn device(self, link: u16, snap: u32, resolution: Option<u8>) -> Vec<u8> {
        let mut body = [&self.u16(link)[..], &[0, 0], &self.u32(snap)].concat();
        if let Some(resolution) = resolution {
            body.extend([self.u16(9), self.u16(1)].concat());
            body.extend([resolution, 0, 0, 0, 0, 0, 0, 0]);
        }
        self.block(1, &body)
    }

    fn enhanced(self, device: u32, ticks: u64, length: u32, bytes: &[u8]) -> Vec<u8> {
        let (high, low) = ((ticks >> 32) as u32, ticks as u32);
        let mut body = self.words(&[device, high, low, bytes.len() as u32, length]);
        body.extend(bytes);
        self.block(6, &body)
    }
}

/// Gives a byte at a time, as a slow pipe does.
struct Slow(Cursor<Vec<u8>>);

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let one = buffer.len().min(1);
        self.0.read(&mut buffer[..one])
    }
}

fn open(bytes: &[u8]) -> Result<Capture, CaptureError> {
    Capture::new("x.pcap".into(), Cursor::new(bytes.to_vec()))
}

/// All packets, and why there are no more.
fn read(bytes: &[u8]) -> (Vec<Captured>, Option<CaptureError>) {
    let mut capture = match open(bytes) {
        Ok(capture) => capture,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut packets = Vec::new();
    let mut packet = Captured::default();
    loop {
        match capture.next(&mut packet) {
            Ok(true) => packets.push(packet.clone()),
            Ok(false) => return (packets, None),
            Err(error) => return (packets, Some(error)),
        }
    }
}

#[track_caller]
fn whole(bytes: &[u8]) -> Vec<Captured> {
    let (packets, error) = read(bytes);
    assert!(error.is_none(), "{error:?}");
    packets
}

fn packet(number: u64, time: u64, length: u32, link: i32, bytes: &[u8]) -> Captured {
    Captured {
        number,
        time: Some(time),
        length,
        link,
        bytes: bytes.to_vec(),
    }
}

#[test]
fn pcap_in_both_orders_and_resolutions() {
    for order in ORDERS {
        for (magic, unit) in [(0xa1b2_c3d4, 1000), (0xa1b2_3c4d, 1)] {
            for link in [1, 276] {
                let bytes = [
                    order.pcap(magic, link),
                    order.record(1_700_000_000, 123_456, 4, b"abcd"),
                    order.record(1_700_000_001, 0, 1500, b"ef"),
                ]
                .concat();
                let link = link as i32;
                let first = 1_700_000_000_000_000_000 + 123_456 * unit;
                let expected = [
                    packet(1, first, 4, link, b"abcd"),
                    packet(2, 1_700_000_001_000_000_000, 1500, link, b"ef"),
                ];
                let packets = whole(&bytes);
                assert_eq!(packets, expected);
                assert_eq!(
                    [false, true],
                    [&packets[0], &packets[1]].map(Captured::is_cut)
                );
            }
        }
    }
}

#[test]
fn pcapng_in_both_orders_with_the_clocks_of_its_devices() {
    for order in ORDERS {
        let bytes = [
            order.section(),
            order.device(1, 0, None),
            order.device(113, 96, Some(9)),
            // 2^-10 s.
            order.device(101, 0, Some(0x8a)),
            order.enhanced(0, 5_000_001, 3, b"abc"),
            // Names, statistics and what the future brings are passed over.
            order.block(4, &[0; 8]),
            order.block(0x0bad_cafe, &[0; 20]),
            order.enhanced(1, 7, 1500, b"defg"),
            order.enhanced(2, 1536, 1, b"h"),
            order.block(3, &[&order.u32(2)[..], b"ij"].concat()),
            // Another section, with devices of its own.
            order.section(),
            order.device(229, 0, Some(3)),
            order.enhanced(0, 9, 1, b"k"),
        ]
        .concat();
        let mut expected = vec![
            packet(1, 5_000_001_000, 3, 1, b"abc"),
            packet(2, 7, 1500, 113, b"defg"),
            packet(3, 1_500_000_000, 1, 101, b"h"),
            packet(4, 0, 2, 1, b"ij"),
            packet(5, 9_000_000, 1, 229, b"k"),
        ];
        // A simple packet has no time.
        expected[3].time = None;
        assert_eq!(whole(&bytes), expected);

        let mut capture = Capture::new("pipe".into(), Slow(Cursor::new(bytes))).unwrap();
        let mut packet = Captured::default();
        for expected in &expected {
            assert!(capture.next(&mut packet).unwrap());
            assert_eq!(packet, *expected);
        }
        assert!(!capture.next(&mut packet).unwrap());
    }
}

#[test]
fn many_packets_of_all_sizes_pass_the_buffer() {
    let order = ORDERS[0];
    let sizes = [0usize, 1, 60, 1514, 65_549, 262_144];
    let mut bytes = order.pcap(0xa1b2_c3d4, 1);
    for n in 0..200 {
        let size = sizes[n % sizes.len()];
        bytes.extend(order.record(n as u32, 0, size as u32, &vec![n as u8; size]));
    }
    let packets = whole(&bytes);
    assert_eq!(packets.len(), 200);
    for (n, packet) in packets.iter().enumerate() {
        assert_eq!(packet.bytes, vec![n as u8; sizes[n % sizes.len()]]);
    }
}

#[test]
fn wherever_a_file_is_cut_what_is_whole_is_read() {
    let order = ORDERS[1];
    let header = order.pcap(0xa1b2_c3d4, 1);
    let record = order.record(1, 2, 5, b"abcde");
    let legacy = [&header[..], &record, &record].concat();
    let ng = [
        order.section(),
        order.device(1, 0, None),
        order.enhanced(0, 1, 5, b"abcde"),
        order.enhanced(0, 2, 5, b"abcde"),
    ];
    let ends = |blocks: &[usize]| -> Vec<usize> {
        let sum = |total: &mut usize, block: &usize| {
            *total += block;
            Some(*total)
        };
        blocks.iter().scan(0, sum).collect()
    };
    for (bytes, ends) in [
        (legacy, ends(&[header.len(), record.len()])),
        (ng.concat(), ends(&[ng[0].len(), ng[1].len(), ng[2].len()])),
    ] {
        let at = ends[ends.len() - 1];
        for length in 1..bytes.len() {
            let (packets, error) = read(&bytes[..length]);
            let expected = usize::from(length >= at);
            assert_eq!(packets.len(), expected, "{length}");
            // Between blocks a file ends as it should.
            if ends.contains(&length) {
                assert!(error.is_none(), "{length}: {error:?}");
                continue;
            }
            let error = error.unwrap();
            let told = error.to_string();
            assert!(!told.contains('\n'), "{told}");
            match error {
                CaptureError::Cut { packets, .. } => {
                    assert_eq!(packets as usize, expected);
                    assert!(told.contains("x.pcap ends in the middle of"), "{told}");
                }
                CaptureError::Foreign { .. } => assert!(length < 4, "{length}"),
                other => panic!("{length}: {other:?}"),
            }
        }
    }
}

#[test]
fn files_that_are_no_captures_are_told_in_a_line() {
    for (bytes, parts) in [
        (&b""[..], ["x.pcap is empty", "tcpdump"]),
        (b"ab", ["too short", "tcpdump"]),
        (b"\x7fELF and so on", ["something else", "tcpdump"]),
        (b"\x1f\x8b\x08\x00\x00", ["compressed", "zcat x.pcap |"]),
        (b"\x28\xb5\x2f\xfd\x00", ["compressed", "zstdcat x.pcap |"]),
        (b"\xfd7zXZ\x00", ["compressed", "xzcat x.pcap |"]),
    ] {
        let told = open(bytes).err().unwrap().to_string();
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
        assert!(!told.contains('\n'), "{told}");
    }
    let (packets, error) = read(&ORDERS[0].pcap(0xa1b2_c3d4, 127));
    assert!(packets.is_empty());
    let told = error.unwrap().to_string();
    assert!(
        told.contains("IEEE802_11_RADIOTAP") || told.contains("127"),
        "{told}"
    );
    let missing = Capture::open(Path::new("/nonexistent/x")).err().unwrap();
    assert!(missing.to_string().contains("/nonexistent/x"));
}

#[test]
fn nonsense_inside_is_damage_and_never_a_packet() {
    let order = ORDERS[0];
    let good = order.record(1, 2, 5, b"abcde");
    let header = order.pcap(0xa1b2_c3d4, 1);
    // A packet of four gigabytes, with data enough to look for it.
    let huge = [order.words(&[1, 2, u32::MAX - 8, 60]), vec![7; 40 << 20]].concat();
    let (packets, error) = read(&[&header[..], &good, &huge].concat());
    assert_eq!(packets.len(), 1);
    assert!(
        matches!(error, Some(CaptureError::Damaged { packets: 1, .. })),
        "{error:?}"
    );

    let start = [order.section(), order.device(1, 0, None)].concat();
    for bad in [
        // Of a device that was never described.
        order.enhanced(1, 0, 1, b"a"),
        // A time no clock tells.
        order.device(1, 0, Some(77)),
        // A block that is shorter than itself.
        order.words(&[6, 4, 0, 0, 0, 0, 0, 4]),
    ] {
        let tail = order.enhanced(0, 0, 1, b"b");
        let (packets, error) = read(&[&start[..], &bad, &tail].concat());
        assert!(packets.is_empty());
        assert!(
            matches!(error, Some(CaptureError::Damaged { packets: 0, .. })),
            "{error:?}"
        );
    }
}

#[test]
fn no_bytes_make_it_fall_over() {
    let order = ORDERS[0];
    let bytes = [
        order.section(),
        order.device(1, 0, Some(6)),
        order.enhanced(0, 1, 5, b"abcde"),
        order.enhanced(0, 2, 5, b"abcde"),
    ]
    .concat();
    let legacy = [
        order.pcap(0xa1b2_c3d4, 1),
        order.record(1, 2, 5, b"abcde"),
        order.record(1, 2, 5, b"abcde"),
    ]
    .concat();
    for bytes in [bytes, legacy] {
        for at in 0..bytes.len() {
            for value in [0, 1, 4, 0x7f, 0x80, 0xff] {
                let mut mutated = bytes.clone();
                mutated[at] = value;
                let (packets, _) = read(&mutated);
                assert!(packets.len() <= 2);
            }
        }
    }
}
