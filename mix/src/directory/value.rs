//! The values of entries: numbers, lists, keys, address patterns (dir-spec 2.4).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::date;
use super::info::Section;
use super::nickname::{InvalidNickname, Nickname};
use super::policy::InvalidRule;
use crate::crypto::pk::{InvalidKey, PublicKey};
use crate::crypto::{DIGEST_LEN, Digest, KeyId};
use crate::packet::HostName;

/// Octets of the longest encoded key that is looked at, as in the reference; a key of 4096 bits has 526.
const MAX_KEY_DER_LEN: usize = 550;

/// Why the value of an entry was refused. Blames whoever wrote it.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum InvalidValue {
    /// Not base64 with padding and without white space. The reference skips characters that are not.
    #[error("not base64")]
    Base64,
    /// Not a digest of 20 octets.
    #[error("not a digest of {DIGEST_LEN} octets")]
    Digest,
    /// Not a key at all.
    #[error(transparent)]
    Key(#[from] InvalidKey),
    /// The exponent must be 65537.
    #[error("the exponent of the key is not 65537")]
    Exponent,
    /// Not a nickname.
    #[error(transparent)]
    Nickname(#[from] InvalidNickname),
    /// Not a date, or one that no calendar has.
    #[error("not a date YYYY-MM-DD")]
    Date,
    /// Not a time.
    #[error("not a time YYYY-MM-DD HH:MM:SS")]
    Time,
    /// Not a number in decimal, or one out of range.
    #[error("not a number between 0 and {max}")]
    Number {
        /// The largest number allowed.
        max: u32,
    },
    /// Neither yes nor no.
    #[error("neither yes nor no")]
    Boolean,
    /// Not a plausible host name.
    #[error("not a plausible host name")]
    HostName,
    /// Not an IPv4 address.
    #[error("not an IPv4 address")]
    Ipv4,
    /// Not an address pattern.
    #[error(transparent)]
    AddressPattern(#[from] InvalidRule),
    /// More characters than the specification allows.
    #[error("longer than {max} characters")]
    TooLong {
        /// Characters allowed.
        max: usize,
    },
    /// Not a fingerprint of 40 hexadecimal digits.
    #[error("not a fingerprint of 40 hexadecimal digits")]
    Fingerprint,
    /// A voting server has a fingerprint and a URL base.
    #[error("not a fingerprint and a URL")]
    Voter,
    /// None of the words known here.
    #[error("an unknown word")]
    Word,
}

/// Why an entry or section was refused: not for what it says, or for that too.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum InvalidEntry {
    /// A section that was there before.
    #[error("section {section} appears twice")]
    DuplicateSection {
        /// Which.
        section: String,
    },
    /// A mandatory entry is not there.
    #[error("the section on line {line} has no {key}")]
    Missing {
        /// Where the section begins.
        line: usize,
        /// What should be there.
        key: &'static str,
    },
    /// An entry that was there before.
    #[error("{key} on line {line} was there before")]
    Duplicate {
        /// Which.
        key: &'static str,
        /// Where.
        line: usize,
    },
    /// A value does not mean what its key demands.
    #[error("{key} on line {line}: {why}")]
    Value {
        /// Which.
        key: &'static str,
        /// Where.
        line: usize,
        /// Why.
        why: InvalidValue,
    },
}

pub(super) fn no_duplicates(sections: &[Section<'_>]) -> Result<(), InvalidEntry> {
    let mut names = BTreeSet::new();
    match sections.iter().find(|section| !names.insert(section.name)) {
        Some(Section { name, .. }) => Err(InvalidEntry::DuplicateSection { section: (*name).to_owned() }),
        None => Ok(()),
    }
}

/// The value of `key` as `read` takes it, when the entry is there. It may not be there twice.
pub(super) fn maybe<T>(
    section: &Section<'_>,
    key: &'static str,
    read: impl FnOnce(&str) -> Result<T, InvalidValue>,
) -> Result<Option<T>, InvalidEntry> {
    let mut entries = section.all(key);
    match (entries.next(), entries.next()) {
        (_, Some(again)) => Err(InvalidEntry::Duplicate { key, line: again.line }),
        (None, None) => Ok(None),
        (Some(entry), None) => {
            read(entry.value).map(Some).map_err(|why| InvalidEntry::Value { key, line: entry.line, why })
        }
    }
}

/// The value of `key` as `read` takes it.
pub(super) fn required<T>(
    section: &Section<'_>,
    key: &'static str,
    read: impl FnOnce(&str) -> Result<T, InvalidValue>,
) -> Result<T, InvalidEntry> {
    maybe(section, key, read)?.ok_or(InvalidEntry::Missing { line: section.line, key })
}

/// What an entry says, whatever it is.
pub(super) fn any(text: &str) -> Result<String, InvalidValue> {
    Ok(text.to_owned())
}

/// The items of a list, whatever they are.
pub(super) fn words(text: &str) -> Result<Vec<String>, InvalidValue> {
    Ok(list(text).map(str::to_owned).collect())
}

pub(super) fn base64(text: &str) -> Result<Vec<u8>, InvalidValue> {
    STANDARD.decode(text).map_err(|_| InvalidValue::Base64)
}

pub(super) fn to_base64(octets: &[u8]) -> String {
    STANDARD.encode(octets)
}

pub(super) fn digest(text: &str) -> Result<Digest, InvalidValue> {
    base64(text)?.try_into().map(Digest).map_err(|_| InvalidValue::Digest)
}

pub(super) fn key(text: &str) -> Result<PublicKey, InvalidValue> {
    let der = base64(text)?;
    if der.len() > MAX_KEY_DER_LEN {
        return Err(InvalidKey::Encoding.into());
    }
    let key = PublicKey::from_der(&der)?;
    if key.has_exponent_65537() { Ok(key) } else { Err(InvalidValue::Exponent) }
}

pub(super) fn nickname(text: &str) -> Result<Nickname, InvalidValue> {
    Ok(text.parse()?)
}

pub(super) fn date(text: &str) -> Result<SystemTime, InvalidValue> {
    date::parse_date(text).ok_or(InvalidValue::Date)
}

pub(super) fn time(text: &str) -> Result<SystemTime, InvalidValue> {
    date::parse_time(text).ok_or(InvalidValue::Time)
}

pub(super) fn number(text: &str) -> Result<u32, InvalidValue> {
    // `parse` alone would take a sign.
    let digits = text.bytes().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or(InvalidValue::Number { max: u32::MAX })
}

pub(super) fn port(text: &str) -> Result<u16, InvalidValue> {
    let max = u32::from(u16::MAX);
    let port = number(text).ok().and_then(|port| u16::try_from(port).ok());
    port.ok_or(InvalidValue::Number { max })
}

pub(super) fn boolean(text: &str) -> Result<bool, InvalidValue> {
    // The specification knows yes and no; the reference takes more, and so descriptors may have it.
    match text.to_ascii_lowercase().as_str() {
        "yes" | "y" | "true" | "on" | "1" => Ok(true),
        "no" | "n" | "false" | "off" | "0" => Ok(false),
        _ => Err(InvalidValue::Boolean),
    }
}

pub(super) fn host(text: &str) -> Result<HostName, InvalidValue> {
    HostName::parse(text).map_err(|_| InvalidValue::HostName)
}

pub(super) fn ipv4(text: &str) -> Result<Ipv4Addr, InvalidValue> {
    text.parse().map_err(|_| InvalidValue::Ipv4)
}

/// Items between commas. An empty value is an empty list; the reference makes one empty item of it.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

pub(super) fn free_text(text: &str, max: usize) -> Result<String, InvalidValue> {
    if text.len() <= max { Ok(text.to_owned()) } else { Err(InvalidValue::TooLong { max }) }
}

pub(super) fn fingerprint(text: &str) -> Result<KeyId, InvalidValue> {
    KeyId::from_fingerprint(text).ok_or(InvalidValue::Fingerprint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_no_sign_and_ports_no_more_than_sixteen_bits() {
        assert_eq!(number("048"), Ok(48));
        for text in ["", "-1", "+1", "4294967296", "1.0", "0x10"] {
            assert_eq!(number(text), Err(InvalidValue::Number { max: u32::MAX }), "{text}");
        }
        assert_eq!(port("65535"), Ok(65535));
        for text in ["65536", "-1", "abc"] {
            assert_eq!(port(text), Err(InvalidValue::Number { max: 65535 }), "{text}");
        }
    }

    #[test]
    fn base64_with_characters_of_no_alphabet_is_refused() {
        assert_eq!(base64("AAAA"), Ok(vec![0; 3]));
        for text in ["AA!AA", "AAA", "AA AA", "AAAA\n", "AB=="] {
            assert_eq!(base64(text), Err(InvalidValue::Base64), "{text}");
        }
    }

    #[test]
    fn an_empty_list_has_no_items() {
        assert_eq!(list("").count(), 0);
        assert_eq!(list("a, b,c").collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn a_fingerprint_is_forty_hexadecimal_digits() {
        assert_eq!(fingerprint(&"0f".repeat(20)), Ok(KeyId([15; 20])));
        for text in ["", "0f", &"+f".repeat(20), &"0g".repeat(20)] {
            assert_eq!(fingerprint(text), Err(InvalidValue::Fingerprint), "{text}");
        }
    }
}
