//! The key `server`: what the servers behind a proxied service offer.

use std::ops::{Range, RangeInclusive};

use toml::de::DeValue;

use super::{
    mistake::Report,
    table::{Key, Located, Section, describe, number},
    values,
};
use crate::model::{Admission, Server, ServerOffer};

const SCALES: RangeInclusive<u8> = 0..=14;
/// From the least MSS a cookie can carry to that of the largest packet.
const MSS_BOUNDS: RangeInclusive<u16> = 216..=65_495;
const BOOLEAN_RIGHT: &str = "true or false";

const TIMESTAMPS: Key<bool> = Key {
    name: "timestamps",
    right: BOOLEAN_RIGHT,
    read: boolean,
};
const SACK: Key<bool> = Key {
    name: "sack",
    right: BOOLEAN_RIGHT,
    read: boolean,
};
const WINDOW_SCALE: Key<u8> = Key {
    name: "window_scale",
    right: "a number from 0 to 14",
    read: |v| number(v).filter(|n| SCALES.contains(n)).ok_or(""),
};
const ECN: Key<bool> = Key {
    name: "ecn",
    right: BOOLEAN_RIGHT,
    read: boolean,
};
const MSS: Key<u16> = Key {
    name: "mss",
    right: "a number from 216 to 65495",
    read: |v| number(v).filter(|n| MSS_BOUNDS.contains(n)).ok_or(""),
};
const KEYS: &[&str] = &[
    TIMESTAMPS.name,
    SACK.name,
    WINDOW_SCALE.name,
    ECN.name,
    MSS.name,
];

fn boolean(value: &DeValue<'_>) -> Result<bool, &'static str> {
    value.as_bool().ok_or("")
}

/// What `section` says under `server`, if anything.
pub(super) fn read(section: &Section<'_>, report: &mut Report<'_>) -> Option<Located<Server>> {
    let value = section.raw(values::SERVER)?;
    let server = match value.get_ref() {
        DeValue::String(s) if s == "learned" => Server::Learned,
        DeValue::Table(table) => {
            let table = Section::open(table, "`server`", KEYS, report);
            let mut is = |key| table.get(key, report).is_some_and(|(is, _)| is);
            let (timestamps, sack, ecn) = (is(&TIMESTAMPS), is(&SACK), is(&ECN));
            Server::Fixed(ServerOffer {
                timestamps,
                sack,
                ecn,
                window_scale: table.get(&WINDOW_SCALE, report).map(|(scale, _)| scale),
                mss: table.get(&MSS, report).map(|(mss, _)| mss),
            })
        }
        other => {
            let is = describe(other);
            report.add(
                &value.span(),
                format!(
                    "`server` is {is}; give \"learned\" or a table such as {{ timestamps = true, \
                     sack = true, window_scale = 7 }}"
                ),
            );
            return None;
        }
    };
    Some((server, value.span()))
}

/// Notes options that would never be offered: only to a proxied client is anything promised in
/// the name of a server that is yet to be asked.
pub(super) fn check(
    server: Server,
    admission: Admission,
    span: &Range<usize>,
    report: &mut Report<'_>,
) {
    if let (Server::Fixed(_), Admission::Local | Admission::Reset) = (server, admission) {
        report.add(
            span,
            format!(
                "`server` means nothing beside `admission` = \"{admission}\"; leave it out, or give \
                 \"proxy\" or \"auto\""
            ),
        );
    }
}
