//! Settings that are addresses: where a mix listens, and whom it talks to.
//!
//! What a rule means is `directory::policy`'s, since descriptors say it too.

use std::fmt;
use std::net::{AddrParseError, SocketAddr};
use std::str::FromStr;

use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::directory::policy::{InvalidRule, Policy, Verdict};

/// Listeners of one node. More addresses than a machine has need of; each costs a file descriptor.
const MAX_LISTENERS: usize = 16;

/// Where to listen: one address and port, or several, of IPv4 and IPv6. Never none.
#[derive(Clone, PartialEq, Eq)]
pub struct ListenAddresses(Vec<SocketAddr>);

/// Why a list of addresses is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidListeners {
    /// No address.
    #[error("at least one address and port")]
    None,
    /// Too many.
    #[error("no more than {MAX_LISTENERS} addresses")]
    TooMany,
    /// One of them twice. Port 0 is any free one, and may be there as often as wanted.
    #[error("{0} is there twice")]
    Twice(SocketAddr),
}

impl ListenAddresses {
    /// The port of the first, which others are told.
    pub fn port(&self) -> u16 {
        self.0.first().map_or(0, SocketAddr::port)
    }

    /// The addresses, in order.
    pub fn as_slice(&self) -> &[SocketAddr] {
        &self.0
    }
}

impl From<SocketAddr> for ListenAddresses {
    fn from(address: SocketAddr) -> Self {
        Self(vec![address])
    }
}

impl TryFrom<Vec<SocketAddr>> for ListenAddresses {
    type Error = InvalidListeners;

    fn try_from(addresses: Vec<SocketAddr>) -> Result<Self, InvalidListeners> {
        let twice =
            |at: usize, address: &SocketAddr| address.port() != 0 && addresses.iter().take(at).any(|a| a == address);
        match addresses.iter().enumerate().find(|(at, address)| twice(*at, address)) {
            Some((_, address)) => Err(InvalidListeners::Twice(*address)),
            None if addresses.is_empty() => Err(InvalidListeners::None),
            None if addresses.len() > MAX_LISTENERS => Err(InvalidListeners::TooMany),
            None => Ok(Self(addresses)),
        }
    }
}

/// One address and port.
impl FromStr for ListenAddresses {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, AddrParseError> {
        text.parse::<SocketAddr>().map(Self::from)
    }
}

impl fmt::Debug for ListenAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

impl Serialize for ListenAddresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.as_slice() {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ListenAddresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrSeveral)
    }
}

struct OneOrSeveral;

impl<'de> Visitor<'de> for OneOrSeveral {
    type Value = ListenAddresses;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address and port, as \"0.0.0.0:48099\" or \"[::]:48099\", or a list of them")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<ListenAddresses, E> {
        text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ListenAddresses, A::Error> {
        let mut addresses = Vec::new();
        while let Some(text) = list.next_element::<String>()? {
            // By name: that the whole is a list is all that would be said otherwise.
            addresses.push(text.parse().map_err(|_| A::Error::custom(format!("`{text}` is not an address and port")))?);
        }
        ListenAddresses::try_from(addresses).map_err(Error::custom)
    }
}

/// Rules for connections, as an operator writes them. Without any, everybody is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Access(Policy);

/// Why rules are refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum InvalidAccess {
    /// One of them.
    #[error("rule `{rule}`: {why}")]
    Rule {
        /// Which.
        rule: String,
        /// Why.
        why: InvalidRule,
    },
    /// All of them together.
    #[error("whom no rule names is denied, so these rules deny everybody; end them with `allow * 1-65535`")]
    Nobody,
}

impl Access {
    /// What they mean.
    pub fn policy(&self) -> &Policy {
        &self.0
    }
}

impl TryFrom<Vec<String>> for Access {
    type Error = InvalidAccess;

    fn try_from(rules: Vec<String>) -> Result<Self, InvalidAccess> {
        let read = |rule: String| rule.parse().map_err(|why| InvalidAccess::Rule { rule, why });
        let policy = Policy::new(rules.into_iter().map(read).collect::<Result<_, _>>()?);
        let allows = policy.rules().iter().any(|rule| rule.verdict() == Verdict::Allow);
        if policy.rules().is_empty() || allows { Ok(Self(policy)) } else { Err(InvalidAccess::Nobody) }
    }
}

impl From<Access> for Vec<String> {
    fn from(access: Access) -> Self {
        access.0.rules().iter().map(ToString::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listen(value: serde_json::Value) -> Result<ListenAddresses, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn one_address_is_a_text_and_several_are_a_list() {
        for value in [json!("127.0.0.1:48099"), json!(["0.0.0.0:48099", "[::]:48099"])] {
            assert_eq!(json!(listen(value.clone()).unwrap()), value);
        }
        assert_eq!(json!(listen(json!(["[::1]:7"])).unwrap()), json!("[::1]:7"));
        assert!(listen(json!(["127.0.0.1:0", "127.0.0.1:0"])).is_ok(), "two free ports");
    }

    #[test]
    fn listeners_that_cannot_be_are_refused_by_name() {
        let sixteen_and_one: Vec<_> = (1..=17).map(|port| format!("127.0.0.1:{port}")).collect();
        for (value, expected) in [
            (json!([]), "at least one"),
            (json!(sixteen_and_one), "no more than 16"),
            (json!(["[::]:7", "[::]:7"]), "[::]:7 is there twice"),
            (json!("somewhere"), "an address and port"),
            (json!(["127.0.0.1"]), "`127.0.0.1` is not an address and port"),
            (json!(7), "an address and port"),
        ] {
            let refused = listen(value.clone()).unwrap_err();
            assert!(refused.contains(expected), "{value}: {refused}");
        }
    }

    #[test]
    fn rules_are_read_and_shown_in_order_and_those_that_deny_everybody_are_refused() {
        let rules = ["deny 10.0.0.0/255.0.0.0", "allow * 1-65535"].map(str::to_owned).to_vec();
        let access = Access::try_from(rules.clone()).unwrap();
        assert_eq!(Vec::from(access), rules);
        assert_eq!(Access::try_from(Vec::new()), Ok(Access::default()));
        let refused = Access::try_from(vec!["deny 10.0.0.1".to_owned()]);
        assert_eq!(refused, Err(InvalidAccess::Nobody));
        let refused = Access::try_from(vec!["allow all".to_owned()]);
        assert_eq!(refused, Err(InvalidAccess::Rule { rule: "allow all".to_owned(), why: InvalidRule::Address }));
    }
}
