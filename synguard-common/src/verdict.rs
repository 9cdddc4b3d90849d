//! The one list of reasons: every packet leaves with exactly one of them, counted per service.
//!
//! One table gives each reason its number (the index into [`crate::abi::ServiceStats`]), its
//! metric label, what happens to the packet, and the line of documentation. Numbers are part of
//! the ABI: append, never reorder.

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Go on up the stack (or out, on egress) untouched.
    Pass,
    /// Leave by the interface it came from, rewritten as our answer.
    Answer,
    /// Stop here.
    Drop,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal, $action:ident;)+) => {
        /// Why a packet was passed, answered or dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            /// The value of the `reason` label in metrics: lower case, stable.
            pub const fn label(self) -> &'static str {
                match self { $(Reason::$name => $label,)+ }
            }

            /// What happens to a packet that leaves with this reason.
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Reason::$name => Action::$action,)+ }
            }

            /// One sentence for people: the documentation line of the reason.
            pub const fn describe(self) -> &'static str {
                match self { $(Reason::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    // Not ours: the packet never concerned a service.
    /// Not TCP over IPv4 or IPv6.
    NotTcp = "not_tcp", Pass;
    /// TCP to an address and port that no service covers.
    Unprotected = "unprotected", Pass;
    /// Sent to a group (multicast or broadcast) link-layer address: the kernel's TCP ignores it.
    NotForHost = "not_for_host", Pass;
    /// Cut short before the end of the TCP header, or a later fragment: the kernel delivers it to
    /// nobody unless the first fragment went through.
    Incomplete = "incomplete", Pass;

    // Calm.
    /// A segment other than a SYN for a calm service, or one that makes no sense: the kernel's
    /// business.
    Calm = "calm", Pass;
    /// A SYN passed to the listener and entered in the half-open table.
    SynTracked = "syn_tracked", Pass;
    /// The SYN that brought the half-open count to the high watermark: passed, and the service is
    /// guarded from here on.
    SynCrossed = "syn_crossed", Pass;
    /// A SYN whose connection is in the half-open table already.
    SynRetransmitted = "syn_retransmitted", Pass;
    /// A SYN the full half-open table had no room for; the service is guarded from here on.
    SynTableFull = "syn_table_full", Pass;
    /// The ACK of the server's SYN-ACK: the connection is no longer half-open.
    HandshakeDone = "handshake_done", Pass;
    /// A RST in the window of a half-open connection, which is thereby gone.
    HalfOpenReset = "half_open_reset", Pass;

    // Guarded, and known to the kernel.
    /// A SYN answered with a SYN cookie from XDP.
    Challenged = "challenged", Answer;
    /// A SYN for a tuple in TIME_WAIT: the kernel knows how to reuse it.
    SynTimeWait = "syn_time_wait", Pass;
    /// A SYN for a tuple that has a connection or a half-open one: the kernel answers it
    /// (RFC 9293 section 3.10.7.4, RFC 5961 section 4).
    SynKnown = "syn_known", Pass;
    /// A segment to a port without a listener: the kernel answers with RST.
    NoListener = "no_listener", Pass;
    /// A segment of a connection in the kernel's socket table.
    Established = "established", Pass;
    /// A segment with a valid cookie, on its way to become a connection.
    CookieValid = "cookie_valid", Pass;
    /// A segment of a connection admitted less than 100 ms ago, which TCP may not have seen yet.
    JustAdmitted = "just_admitted", Pass;
    /// No key for the present epoch (the daemon has been gone too long): passed, not challenged.
    NoKey = "no_key", Pass;
    /// No room to write the answer: passed, not challenged.
    NoRoom = "no_room", Pass;

    // Guarded, and dropped.
    /// ACK whose acknowledgement number is no cookie of ours, or an expired one.
    AckInvalid = "ack_invalid", Drop;
    /// RST for no known connection.
    RstUnknown = "rst_unknown", Drop;
    /// SYN-ACK for no connection opened from inside.
    SynAckUnknown = "syn_ack_unknown", Drop;
    /// SYN together with FIN.
    SynFin = "syn_fin", Drop;
    /// SYN together with RST.
    SynRst = "syn_rst", Drop;
    /// Neither SYN, ACK nor RST (null, FIN, PSH or URG scans).
    NoAck = "no_ack", Drop;
    /// A fragment with the beginning of a TCP segment.
    Fragment = "fragment", Drop;
    /// IP header that contradicts itself or the frame's length.
    BadIp = "bad_ip", Drop;
    /// More IPv6 extension headers than are followed, or one cut short.
    BadExtension = "bad_extension", Drop;
    /// More VLAN tags than are followed: the kernel strips any number of priority tags.
    TooManyTags = "too_many_tags", Drop;
    /// TCP header beyond the first of several buffers, where it cannot be read.
    OutOfReach = "out_of_reach", Drop;
    /// TCP header that contradicts itself or the packet's length.
    BadTcp = "bad_tcp", Drop;
    /// A source address that no answer may be sent to: multicast, broadcast, unspecified,
    /// loopback, or the destination itself.
    BadSource = "bad_source", Drop;

    // TC ingress, `local` admission.
    /// A connection created from a valid cookie.
    Admitted = "admitted", Pass;
    /// A further segment of a tuple admitted less than 100 ms ago: passed bare to find the child.
    AdmitRepeated = "admit_repeated", Pass;
    /// The listener vanished, or a connection appeared, between XDP and TC: left to the kernel.
    AdmitNoListener = "admit_no_listener", Pass;
    /// The kernel refused to make the socket (`bpf_sk_assign_tcp_reqsk` failed).
    AdmitRefused = "admit_refused", Drop;
    /// XDP let it through to be admitted, but the cookie does not hold (any more).
    AdmitInvalid = "admit_invalid", Drop;

    // TC egress.
    /// A SYN-ACK of the server for a half-open connection.
    SynAckSeen = "syn_ack_seen", Pass;
    /// A RST of the server for a half-open connection, which is thereby gone.
    ServerReset = "server_reset", Pass;

    // `proxy` admission, in.
    /// An ACK with a valid cookie, turned into the client's SYN for the server.
    SpliceStarted = "splice_started", Pass;
    /// The same again, because the server has not answered.
    SpliceRetried = "splice_retried", Pass;
    /// A segment of a connection whose server has not answered yet.
    SplicePending = "splice_pending", Drop;
    /// A segment of a spliced connection, translated for the server.
    Translated = "translated", Pass;
    /// A segment of a connection that the server was seen talking on.
    FlowKnown = "flow_known", Pass;
    /// An ACK with a valid cookie whose TCP checksum is wrong.
    BadChecksum = "bad_checksum", Drop;
    /// No room in the flow table for an ACK with a valid cookie.
    FlowTableFull = "flow_table_full", Drop;
    /// A segment of no known connection, so soon after the start that it may be an older one.
    Settling = "settling", Pass;
    /// A SYN that passes because its options may be news of the server: its answer tells.
    ProfileProbe = "profile_probe", Pass;
    /// An ICMP error about a segment of a spliced connection, translated for the server.
    IcmpTranslated = "icmp_translated", Pass;

    // `proxy` admission, out.
    /// The server's SYN-ACK for a pending connection: acknowledged in the client's name, and passed on
    /// as a window update.
    SpliceCompleted = "splice_completed", Pass;
    /// The server refused a pending connection: its RST is passed on as one that the client accepts.
    SpliceRefused = "splice_refused", Pass;
    /// The server lacks an option that the client was promised: both are reset, and the option is
    /// promised no more.
    SpliceShort = "splice_short", Pass;
    /// The server holds an older connection of the tuple: that one is reset, and the SYN sent again.
    SpliceChallenged = "splice_challenged", Drop;
    /// A packet that was to begin, complete or reset a splice could not be written or sent.
    SpliceFailed = "splice_failed", Drop;
    /// A segment of a spliced connection, translated for the client.
    TranslatedOut = "translated_out", Pass;
    /// An ICMP error about a segment of a spliced connection, translated for the client.
    IcmpTranslatedOut = "icmp_translated_out", Pass;
    /// The server talks on a connection that was not known: entered.
    FlowLearned = "flow_learned", Pass;

    // `reset` admission.
    /// The RST that a real client answers our SYN-ACK with: its source is verified from here on.
    SourceVerified = "source_verified", Drop;
    /// A SYN of a verified source.
    SynVerified = "syn_verified", Pass;
    /// A segment other than a SYN for a service of which only one direction may be seen.
    Unchecked = "unchecked", Pass;

    // Sources.
    /// From a source that the operator blocks.
    SourceBlocked = "source_blocked", Drop;
    /// A SYN for a guarded service from a source that the operator allows: passed unasked.
    SynAllowed = "syn_allowed", Pass;
    /// A SYN of a source that has sent too many in this second that came to nothing.
    SourceOverBudget = "source_over_budget", Drop;
}

impl Reason {
    /// Whether a packet leaves as it would in any other mode though its service is only observed:
    /// it belongs to a connection that began before.
    #[inline(always)]
    pub const fn is_kept_in_observe(self) -> bool {
        matches!(
            self,
            Reason::CookieValid
                | Reason::SpliceStarted
                | Reason::SpliceRetried
                | Reason::SplicePending
                | Reason::Translated
                | Reason::FlowKnown
        )
    }

    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positions_and_labels_are_unique() {
        for (i, a) in Reason::ALL.iter().enumerate() {
            assert_eq!(*a as usize, i);
            assert!(!a.describe().is_empty());
            assert!(
                a.label()
                    .bytes()
                    .all(|c| c.is_ascii_lowercase() || c == b'_'),
                "{}",
                a.label()
            );
            for b in &Reason::ALL[i + 1..] {
                assert_ne!(a.label(), b.label());
            }
        }
    }
}
