//! Settings that are checked while they are read: what cannot be meant is refused where it stands, by file, line and key,
//! and not when it is used. For fields of any section, as `#[serde(with = "…")]` or `#[serde(deserialize_with = "…")]`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::crypto::KeyId;
use crate::directory::Nickname;
use crate::packet::HostName;
use crate::path::ExitAddress;
use crate::path::spec::{PathKind, PathSpec};
use crate::secret::Secret;

/// The longest time that can be set. Sums of such times stay far from the end of every clock.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// A time that is longer than nothing and at most ten years, written as "90 seconds" or "30 days".
pub mod time {
    pub use humantime_serde::serialize;

    use super::{Deserializer, Duration, checked};

    /// Reads it.
    ///
    /// # Errors
    /// What is no time, nothing, or more than ten years.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        checked(
            humantime_serde::deserialize(deserializer)?,
            |time| !time.is_zero() && *time <= super::LONGEST,
            super::A_TIME,
        )
    }
}

/// As [`time`], or "0s" where that means never.
pub mod time_or_never {
    pub use humantime_serde::serialize;

    use super::{Deserializer, Duration, checked};

    /// Reads it.
    ///
    /// # Errors
    /// What is no time, or more than ten years.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        checked(humantime_serde::deserialize(deserializer)?, |time| *time <= super::LONGEST, super::A_TIME_OR_NEVER)
    }
}

const A_TIME: &str = "a time longer than nothing and at most ten years, such as \"15 minutes\"";
const A_TIME_OR_NEVER: &str = "a time of at most ten years, such as \"15 minutes\", or \"0s\" for never";

/// A part of a whole: above 0, up to 1.
///
/// # Errors
/// Any other number.
pub fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    checked(f64::deserialize(deserializer)?, |rate| *rate > 0.0 && *rate <= 1.0, "a number above 0 and up to 1")
}

/// The base URL of a directory server, with a slash at the end; or nothing.
///
/// # Errors
/// Any other text.
pub fn base_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let is_base = |url: &String| {
        let web = url.starts_with("http://") || url.starts_with("https://");
        url.is_empty() || web && url.ends_with('/') && !url.contains(char::is_whitespace)
    };
    checked(
        String::deserialize(deserializer)?,
        is_base,
        "a URL such as http://directory.example:48080/, with its last slash",
    )
}

/// A fingerprint, 40 hexadecimal digits; or nothing.
///
/// # Errors
/// Any other text.
pub fn fingerprint<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let is_fingerprint = |text: &String| text.is_empty() || KeyId::from_fingerprint(text).is_some();
    checked(String::deserialize(deserializer)?, is_fingerprint, A_FINGERPRINT)
}

/// Fingerprints.
///
/// # Errors
/// A list in which one is none.
pub fn fingerprints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let are_fingerprints = |list: &Vec<String>| list.iter().all(|text| KeyId::from_fingerprint(text).is_some());
    checked(Vec::deserialize(deserializer)?, are_fingerprints, "a list of fingerprints, 40 hexadecimal digits each")
}

const A_FINGERPRINT: &str = "a fingerprint, 40 hexadecimal digits";

/// A nickname (dir-spec 2).
///
/// # Errors
/// What [`Nickname`] refuses.
pub fn nickname<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse::<Nickname>().map_err(de::Error::custom)?;
    Ok(text)
}

/// Nicknames.
///
/// # Errors
/// What [`Nickname`] refuses, with the name.
pub fn nicknames<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let list = Vec::<String>::deserialize(deserializer)?;
    for text in &list {
        text.parse::<Nickname>().map_err(|why| de::Error::custom(format_args!("{text}: {why}")))?;
    }
    Ok(list)
}

/// A host name or IPv4 address, as a packet's routing info can hold it.
///
/// # Errors
/// What [`HostName`] refuses.
pub fn host<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    HostName::parse(&text).map_err(de::Error::custom)?;
    Ok(text)
}

/// The specification of a path out.
///
/// # Errors
/// What [`PathSpec`] refuses.
pub fn forward_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    path(deserializer, PathKind::Forward)
}

/// The specification of the path of a reply block.
///
/// # Errors
/// What [`PathSpec`] refuses.
pub fn surb_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    path(deserializer, PathKind::Surb)
}

fn path<'de, D: Deserializer<'de>>(deserializer: D, kind: PathKind) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    PathSpec::parse(&text, kind).map_err(de::Error::custom)?;
    Ok(text)
}

/// An exit address; or nothing.
///
/// # Errors
/// What [`ExitAddress`] refuses.
pub fn exit_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if !text.is_empty() {
        ExitAddress::parse(&text).map_err(de::Error::custom)?;
    }
    Ok(text)
}

/// A number between `least` and `most`, both included.
///
/// # Errors
/// Any other.
pub fn between<'de, D: Deserializer<'de>>(deserializer: D, least: u64, most: u64) -> Result<u64, D::Error> {
    let expected = format!("a number between {least} and {most}");
    checked(u64::deserialize(deserializer)?, |number| (least..=most).contains(number), &expected)
}

/// A number of things that take memory or a thread each: from 1 to 10,000.
///
/// # Errors
/// Any other.
pub fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let count = between(deserializer, 1, 10_000)?;
    usize::try_from(count).map_err(de::Error::custom)
}

/// A number above zero.
///
/// # Errors
/// Zero.
pub fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    checked(u64::deserialize(deserializer)?, |number| *number > 0, "a number above 0")
}

/// A list that is not empty.
///
/// # Errors
/// An empty one, and what its items say.
pub fn one_or_more<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    checked(Vec::deserialize(deserializer)?, |list: &Vec<T>| !list.is_empty(), "at least one of them")
}

/// What is written in place of a password: whoever compares settings sees whether there is one. How that is shown is the
/// business of whoever shows settings.
const IS_SET: &str = "is set";

/// A password from the settings: overwritten when dropped, not printed, and not written out again: that there is one is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Password(Secret<String>);

impl Password {
    /// Takes charge of `password`.
    pub fn new(password: String) -> Self {
        Self(Secret::new(password))
    }

    /// The password itself.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        something(deserializer).map(Self::new)
    }
}

impl Serialize for Password {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.expose().is_empty() { "" } else { IS_SET })
    }
}

/// A text that says something.
///
/// # Errors
/// An empty one.
pub fn something<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(String::deserialize(deserializer)?, |text: &String| !text.is_empty(), "a text that is not empty")
}

/// The value, if it is what is expected.
fn checked<T, E: de::Error>(value: T, is: impl Fn(&T) -> bool, expected: &str) -> Result<T, E> {
    if is(&value) { Ok(value) } else { Err(E::custom(format_args!("expected {expected}"))) }
}

#[cfg(test)]
mod tests {
    use serde::de::IntoDeserializer as _;
    use serde::de::value::{Error, F64Deserializer, StrDeserializer};

    use super::*;

    type Text<T> = fn(StrDeserializer<'static, Error>) -> Result<T, Error>;

    fn refused<T: std::fmt::Debug>(read: Text<T>, text: &'static str) -> String {
        read(text.into_deserializer()).unwrap_err().to_string()
    }

    #[test]
    fn times_are_longer_than_nothing_and_shorter_than_an_age() {
        let read: Text<Duration> = time::deserialize;
        assert_eq!(read("15 minutes".into_deserializer()), Ok(Duration::from_secs(900)));
        for text in ["0s", "11 years", "500000000000 years"] {
            let why = refused(read, text);
            assert!(why.starts_with("expected a time longer than nothing") || why.contains("too"), "{text}: {why}");
        }
        let never: Text<Duration> = time_or_never::deserialize;
        assert_eq!(never("0s".into_deserializer()), Ok(Duration::ZERO));
        assert!(refused(never, "11 years").starts_with("expected a time of at most ten years"));
    }

    #[test]
    fn passwords_are_neither_printed_nor_written_out() {
        let read: Text<Password> = Password::deserialize;
        let password = read("hunter2".into_deserializer()).unwrap();
        assert_eq!(password.expose(), "hunter2");
        assert_eq!(serde_json::to_string(&password).unwrap(), "\"is set\"");
        assert!(!format!("{password:?}").contains("hunter2"));
        assert!(refused(read, "").contains("not empty"));
        assert_eq!(serde_json::to_string(&Password::default()).unwrap(), "\"\"", "it shows that there is none");
    }

    #[test]
    fn rates_are_parts_of_a_whole() {
        let read = |rate: f64| -> Result<f64, Error> { super::rate(F64Deserializer::new(rate)) };
        assert_eq!(read(1.0), Ok(1.0));
        for wrong in [0.0, -0.5, 1.01, f64::NAN, f64::INFINITY] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn texts_that_cannot_be_meant_are_refused() {
        for url in ["127.0.0.1:9", "http://d.example", "ftp://d.example/", "http://d example/"] {
            assert!(refused(base_url, url).contains("last slash"), "{url}");
        }
        assert!(refused(fingerprint, "0123").contains("40 hexadecimal digits"));
        assert!(refused(something, "").contains("not empty"));
        for empty in [base_url as Text<String>, fingerprint] {
            assert_eq!(empty("".into_deserializer()), Ok(String::new()));
        }
        assert!(nickname::<StrDeserializer<'_, Error>>("9lives".into_deserializer()).is_err());
        assert!(host::<StrDeserializer<'_, Error>>("not a host".into_deserializer()).is_err());
        assert!(forward_path::<StrDeserializer<'_, Error>>("a,,b".into_deserializer()).is_err());
        assert!(surb_path::<StrDeserializer<'_, Error>>("".into_deserializer()).is_err());
    }
}
