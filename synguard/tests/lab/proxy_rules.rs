//! Packets that get lost on purpose, and what the kernel says of the sockets at either end.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use synguard_lab::netns::Netns;

/// Where packets are looked at.
#[derive(Clone, Copy, Debug)]
pub enum Hook {
    /// What arrives for this namespace.
    Input,
    /// What this namespace sends.
    Output,
}

/// A SYN, for [`Rules::lose`].
pub const SYN: &str = "tcp flags & (syn|ack|rst) == syn";
/// A SYN-ACK.
pub const SYN_ACK: &str = "tcp flags & (syn|ack|rst) == syn|ack";
/// An ACK, with data or without.
pub const ACK: &str = "tcp flags & (syn|ack|rst) == ack";
/// A FIN.
pub const FIN: &str = "tcp flags & (fin|rst) == fin";

/// Matches for one packet without data: `quota` counts bytes, and these have 40 to 99.
const FIRST: &str = "quota until 100 bytes";

/// A rule by which a namespace loses packets; gone when dropped.
pub struct Rules<'a> {
    ns: &'a Netns,
}

impl<'a> Rules<'a> {
    /// Loses every packet that matches.
    pub fn lose(ns: &'a Netns, hook: Hook, packets: &str) -> Self {
        let hook = match hook {
            Hook::Input => "input",
            Hook::Output => "output",
        };
        let rules = format!(
            "table inet lose {{\ncounter lost {{}}\nchain lose {{\n\
             type filter hook {hook} priority filter; policy accept;\n\
             {packets} counter name lost drop\n}}\n}}\n"
        );
        nft(ns, &["-f", "-"], &rules);
        Self { ns }
    }

    /// Loses the first one of the packets without data that match.
    pub fn lose_first(ns: &'a Netns, hook: Hook, packets: &str) -> Self {
        Self::lose(ns, hook, &format!("{packets} {FIRST}"))
    }

    /// How many were lost so far.
    pub fn lost(&self) -> u64 {
        let text = nft(self.ns, &["list", "counter", "inet", "lose", "lost"], "");
        let mut words = text.split_ascii_whitespace();
        words.find(|word| *word == "packets").unwrap();
        words.next().unwrap().parse().unwrap()
    }
}

impl Drop for Rules<'_> {
    fn drop(&mut self) {
        nft(self.ns, &["delete", "table", "inet", "lose"], "");
    }
}

fn nft(ns: &Netns, arguments: &[&str], input: &str) -> String {
    let output = ns.run(|| {
        let mut child = Command::new("nft")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().unwrap().write_all(input.as_bytes())?;
        Ok(child.wait_with_output()?)
    });
    let output = output.unwrap();
    assert!(output.status.success(), "nft {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// States of sockets, as the kernel numbers them.
pub mod state {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_RECEIVED: u8 = 3;
    pub const TIME_WAIT: u8 = 6;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
}

/// The timer of a sender that is to find out whether a window of zero has opened.
pub const PROBE_TIMER: u8 = 4;

/// A TCP socket of a namespace, as `/proc/net/tcp` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    pub local_port: u16,
    pub remote_port: u16,
    pub state: u8,
    pub timer: u8,
}

/// Those of both families, but for listeners.
pub fn sockets(ns: &Netns) -> Vec<Socket> {
    let read = |name| {
        let path = format!("/proc/thread-self/net/{name}");
        ns.run(|| Ok(std::fs::read_to_string(&path)?)).unwrap()
    };
    let text = [read("tcp"), read("tcp6")];
    let lines = text.iter().flat_map(|text| text.lines().skip(1));
    let parse = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let port = |word: &str| u16::from_str_radix(word.rsplit_once(':').unwrap().1, 16).unwrap();
        Socket {
            local_port: port(words[1]),
            remote_port: port(words[2]),
            state: u8::from_str_radix(words[3], 16).unwrap(),
            timer: u8::from_str_radix(words[5].split_once(':').unwrap().0, 16).unwrap(),
        }
    };
    lines
        .map(parse)
        .filter(|socket| socket.state != state::LISTEN)
        .collect()
}
