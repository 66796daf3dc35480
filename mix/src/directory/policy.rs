//! Whom a mix talks to: rules Allow and Deny, by address and port (dir-spec 2.4, 3).
//!
//! Descriptors say it in the grammar of the specification, which knows IPv4 alone. An operator may also name IPv6 and
//! prefixes; rules of IPv6 are obeyed and not published, since no reader would take them. The reference writes and reads
//! the rules, and obeys none.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::value::port;

/// The port of a rule Allow that names none (dir-spec 2.4).
const DEFAULT_PORT: u16 = 48099;

/// Why a rule was refused. Blames whoever wrote it.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum InvalidRule {
    /// The first word is neither allow nor deny.
    #[error("a rule begins with `allow` or `deny`")]
    Verdict,
    /// Neither `*` nor an address.
    #[error("neither `*` nor an IP address")]
    Address,
    /// A mask that its address cannot have.
    #[error("not a mask or prefix length of that address")]
    Mask,
    /// Not a port or a range of ports.
    #[error("not a port or a range of ports between 1 and 65535")]
    Ports,
}

/// What a rule says of those whom it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Talk to them.
    Allow,
    /// Do not.
    Deny,
}

/// One rule: some addresses, some ports, and what is said of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    verdict: Verdict,
    addresses: Addresses,
    lowest_port: u16,
    highest_port: u16,
}

/// The addresses that have the bits under the mask in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Addresses {
    All,
    V4 { bits: u32, mask: u32 },
    V6 { bits: u128, mask: u128 },
}

/// Rules in order: the first that matches wins, and whom none names is denied (dir-spec 3). Without any rule everybody is
/// allowed: so is every mix of the network, none of which states rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Policy(Vec<Rule>);

impl Policy {
    /// These rules in this order.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(rules)
    }

    /// The rules in order.
    pub fn rules(&self) -> &[Rule] {
        &self.0
    }

    /// What a descriptor says of it: address patterns in order.
    pub fn published(&self) -> Vec<(Verdict, String)> {
        let pattern = |rule: &Rule| Some((rule.verdict, rule.pattern()?));
        let patterns: Vec<_> = self.0.iter().filter_map(pattern).collect();
        if patterns.is_empty() && !self.0.is_empty() {
            // Without any line, readers would take it that everybody is allowed.
            return vec![(Verdict::Deny, "*".to_owned())];
        }
        patterns
    }

    /// Whether it lets anybody through at `port`, as far as one can tell without an address.
    pub fn opens(&self, port: u16) -> bool {
        self.0.is_empty() || self.0.iter().any(|rule| rule.verdict == Verdict::Allow && rule.has_port(port))
    }

    /// Whether it allows this address at this port: the port that is connected to, in either direction.
    pub fn allows(&self, address: IpAddr, port: u16) -> bool {
        // The same host may come in either form.
        let address = address.to_canonical();
        let decided = self.0.iter().find(|rule| rule.has_port(port) && rule.addresses.contain(address));
        decided.map_or(self.0.is_empty(), |rule| rule.verdict == Verdict::Allow)
    }
}

impl Rule {
    /// Reads an address pattern of a descriptor, in which the key is the verdict (dir-spec 2.4).
    ///
    /// # Errors
    /// [`InvalidRule`], all variants but [`InvalidRule::Verdict`].
    pub fn published(verdict: Verdict, pattern: &str) -> Result<Self, InvalidRule> {
        Self::read(verdict, pattern, |address, mask| match address {
            "*" if mask.is_none() => Ok(Addresses::All),
            "*" => Err(InvalidRule::Mask),
            _ => Addresses::v4(parse(address)?, mask.map_or(Ok(u32::MAX), dotted_mask)?),
        })
    }

    /// What it says of those whom it names.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The address pattern of a descriptor, in the words of the reference; `None` for a rule of IPv6.
    fn pattern(&self) -> Option<String> {
        let addresses = match self.addresses {
            Addresses::All | Addresses::V4 { mask: 0, .. } => "*".to_owned(),
            Addresses::V4 { bits, mask: u32::MAX } => Ipv4Addr::from_bits(bits).to_string(),
            Addresses::V4 { bits, mask } => format!("{}/{}", Ipv4Addr::from_bits(bits), Ipv4Addr::from_bits(mask)),
            Addresses::V6 { .. } => return None,
        };
        Some(addresses + &self.ports())
    }

    fn read(
        verdict: Verdict,
        pattern: &str,
        addresses: impl FnOnce(&str, Option<&str>) -> Result<Addresses, InvalidRule>,
    ) -> Result<Self, InvalidRule> {
        let (address, rest) = split(pattern.trim(), |c| c == '/' || c.is_ascii_whitespace());
        let (mask, ports) = match rest.trim_start().strip_prefix('/') {
            Some(rest) => {
                let (mask, ports) = split(rest.trim_start(), |c| c.is_ascii_whitespace());
                (Some(mask), ports)
            }
            None => (None, rest),
        };
        let addresses = addresses(address, mask)?;
        let (lowest_port, highest_port) = match (ports.trim(), verdict) {
            ("", Verdict::Allow) => (DEFAULT_PORT, DEFAULT_PORT),
            ("", Verdict::Deny) => (0, u16::MAX),
            (ports, _) => port_range(ports)?,
        };
        Ok(Self { verdict, addresses, lowest_port, highest_port })
    }

    fn has_port(&self, port: u16) -> bool {
        (self.lowest_port..=self.highest_port).contains(&port)
    }

    /// The ports with a space before them, or nothing where the default says the same.
    fn ports(&self) -> String {
        match (self.verdict, self.lowest_port, self.highest_port) {
            (Verdict::Allow, DEFAULT_PORT, DEFAULT_PORT) | (Verdict::Deny, 0, u16::MAX) => String::new(),
            (_, lowest, highest) if lowest == highest => format!(" {lowest}"),
            (_, lowest, highest) => format!(" {lowest}-{highest}"),
        }
    }
}

/// Reads a rule of an operator: `allow` or `deny`, then `*` or an address of either kind, perhaps with a mask or a prefix
/// length, then perhaps a port or a range of ports. A colon behind the first word does no harm: so the reference has it.
impl FromStr for Rule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let (verdict, pattern) = split(text.trim(), |c| c == ':' || c.is_ascii_whitespace());
        let verdict = match verdict.to_ascii_lowercase().as_str() {
            "allow" => Verdict::Allow,
            "deny" => Verdict::Deny,
            _ => return Err(InvalidRule::Verdict),
        };
        let pattern = pattern.strip_prefix(':').unwrap_or(pattern);
        Self::read(verdict, pattern, |address, mask| match (address, mask) {
            ("*", None) => Ok(Addresses::All),
            ("*", Some(_)) => Err(InvalidRule::Mask),
            _ => match parse(address)? {
                IpAddr::V4(address) => Addresses::v4(address, mask.map_or(Ok(u32::MAX), v4_mask)?),
                IpAddr::V6(address) => Addresses::v6(address, mask.map_or(Ok(128), |mask| prefix_len(mask, 128))?),
            },
        })
    }
}

/// In the words of an operator.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.verdict {
            Verdict::Allow => "allow ",
            Verdict::Deny => "deny ",
        })?;
        match self.addresses {
            Addresses::All => f.write_str("*")?,
            Addresses::V4 { bits, mask: u32::MAX } => write!(f, "{}", Ipv4Addr::from_bits(bits))?,
            // Not `*`, which here is IPv6 too.
            Addresses::V4 { bits, mask } => write!(f, "{}/{}", Ipv4Addr::from_bits(bits), Ipv4Addr::from_bits(mask))?,
            Addresses::V6 { bits, mask } => write!(f, "{}/{}", Ipv6Addr::from_bits(bits), mask.count_ones())?,
        }
        f.write_str(&self.ports())
    }
}

impl Addresses {
    fn v4(address: Ipv4Addr, mask: u32) -> Result<Self, InvalidRule> {
        Ok(Self::V4 { bits: address.to_bits() & mask, mask })
    }

    /// An IPv4 address in IPv6 form is that IPv4 address: connections are judged so too.
    fn v6(address: Ipv6Addr, prefix: u32) -> Result<Self, InvalidRule> {
        match (address.to_ipv4_mapped(), prefix.checked_sub(96)) {
            (Some(v4), Some(prefix)) => Self::v4(v4, v4_prefix(prefix)),
            (Some(_), None) => Err(InvalidRule::Mask),
            (None, _) => {
                let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
                Ok(Self::V6 { bits: address.to_bits() & mask, mask })
            }
        }
    }

    fn contain(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::All, _) => true,
            (Self::V4 { bits, mask }, IpAddr::V4(address)) => address.to_bits() & mask == bits,
            (Self::V6 { bits, mask }, IpAddr::V6(address)) => address.to_bits() & mask == bits,
            _ => false,
        }
    }
}

fn split(text: &str, at: impl Fn(char) -> bool) -> (&str, &str) {
    text.find(at).map_or((text, ""), |place| text.split_at(place))
}

fn parse<T: FromStr>(address: &str) -> Result<T, InvalidRule> {
    address.parse().map_err(|_| InvalidRule::Address)
}

/// Any four octets, as in the reference: nothing says that the bits stand together.
fn dotted_mask(mask: &str) -> Result<u32, InvalidRule> {
    mask.parse().map(Ipv4Addr::to_bits).map_err(|_| InvalidRule::Mask)
}

fn v4_mask(mask: &str) -> Result<u32, InvalidRule> {
    dotted_mask(mask).or_else(|_| prefix_len(mask, 32).map(v4_prefix))
}

fn v4_prefix(len: u32) -> u32 {
    u32::MAX.checked_shl(32 - len).unwrap_or(0)
}

fn prefix_len(text: &str, max: u32) -> Result<u32, InvalidRule> {
    let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|len| digits && *len <= max).ok_or(InvalidRule::Mask)
}

fn port_range(text: &str) -> Result<(u16, u16), InvalidRule> {
    let (lowest, highest) = text.split_once('-').unwrap_or((text, text));
    match (port(lowest.trim()), port(highest.trim())) {
        (Ok(lowest), Ok(highest)) if 1 <= lowest && lowest <= highest => Ok((lowest, highest)),
        _ => Err(InvalidRule::Ports),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rules: &[&str]) -> Policy {
        Policy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect())
    }

    fn allows(policy: &Policy, address: &str, port: u16) -> bool {
        policy.allows(address.parse().unwrap(), port)
    }

    #[test]
    fn patterns_of_descriptors_mean_what_the_reference_reads_in_them() {
        let read = |pattern| Rule::published(Verdict::Allow, pattern).map(|rule| rule.pattern().unwrap());
        for (text, canonical) in [
            ("*", "*"),
            ("* 80", "* 80"),
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1 48099", "10.0.0.1"),
            ("10.0.0.0/255.0.0.0 1-65535", "10.0.0.0/255.0.0.0 1-65535"),
            ("10.1.2.3 / 255.0.255.0  80 - 90", "10.0.2.0/255.0.255.0 80-90"),
            ("10.0.0.1/0.0.0.0", "*"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(canonical), "{text}");
        }
        assert_eq!(Rule::published(Verdict::Deny, "*").unwrap().pattern().unwrap(), "*", "all ports");
    }

    #[test]
    fn each_flaw_of_a_pattern_is_refused_by_name() {
        use InvalidRule::{Address, Mask, Ports};
        for (text, expected) in [
            ("", Address),
            ("host", Address),
            ("10.0.0", Address),
            ("::1", Address),
            ("*/255.0.0.0", Mask),
            ("10.0.0.1/8", Mask),
            ("10.0.0.1/", Mask),
            ("10.0.0.1 0", Ports),
            ("10.0.0.1 90-80", Ports),
            ("10.0.0.1 1-65536", Ports),
            ("10.0.0.1 +1", Ports),
            ("10.0.0.1 80 90", Ports),
        ] {
            assert_eq!(Rule::published(Verdict::Deny, text), Err(expected), "{text}");
        }
    }

    #[test]
    fn operators_may_name_prefixes_and_ipv6_and_each_flaw_is_refused_by_name() {
        for (text, canonical) in [
            ("allow 10.1.0.0/8", "allow 10.0.0.0/255.0.0.0"),
            ("Deny: 10.0.0.0/255.0.0.0", "deny 10.0.0.0/255.0.0.0"),
            ("allow * 1-65535", "allow * 1-65535"),
            ("deny 0.0.0.0/0", "deny 0.0.0.0/0.0.0.0"),
            ("deny 2001:db8::1", "deny 2001:db8::1/128"),
            ("allow 2001:db8:ffff::/32 5000", "allow 2001:db8::/32 5000"),
            ("deny ::/0", "deny ::/0"),
            ("deny ::ffff:10.0.0.0/104", "deny 10.0.0.0/255.0.0.0"),
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(rule.to_string(), canonical, "{text}");
            assert_eq!(canonical.parse(), Ok(rule));
        }
        use InvalidRule::{Address, Mask, Ports, Verdict};
        for (text, expected) in [
            ("", Verdict),
            ("10.0.0.1", Verdict),
            ("permit *", Verdict),
            ("allow", Address),
            ("allow example.org", Address),
            ("allow 10.0.0.1/33", Mask),
            ("allow */8", Mask),
            ("allow ::1/129", Mask),
            ("allow ::1/255.0.0.0", Mask),
            ("allow ::ffff:10.0.0.0/64", Mask),
            ("allow ::1 no", Ports),
        ] {
            assert_eq!(text.parse::<Rule>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn first_match_wins_and_whom_no_rule_names_is_denied() {
        let policy =
            policy(&["deny 10.0.0.0/8", "allow 10.1.0.0/16 1-65535", "allow 192.0.2.7", "allow 2001:db8::/32"]);
        assert!(!allows(&policy, "10.1.2.3", 48099), "the first rule wins");
        assert!(allows(&policy, "192.0.2.7", 48099));
        assert!(allows(&policy, "::ffff:192.0.2.7", 48099), "the same host");
        assert!(!allows(&policy, "192.0.2.7", 48100), "a rule without port is for 48099");
        assert!(!allows(&policy, "192.0.2.8", 48099), "nobody has named it");
        assert!(allows(&policy, "2001:db8::1", 48099) && !allows(&policy, "2001:db9::1", 48099));
        assert!(policy.opens(48099) && policy.opens(1) && !policy.opens(0));
    }

    #[test]
    fn without_rules_everybody_is_allowed() {
        let open = Policy::default();
        assert!(allows(&open, "10.1.2.3", 1) && allows(&open, "::1", 65535) && open.opens(7));
    }

    #[test]
    fn rules_of_ipv6_are_obeyed_and_not_published() {
        let policy = policy(&["deny 2001:db8::/32", "allow * 1-65535"]);
        assert!(!allows(&policy, "2001:db8::1", 48099) && allows(&policy, "2001:db9::1", 48099));
        assert_eq!(policy.published(), [(Verdict::Allow, "* 1-65535".to_owned())]);
    }

    #[test]
    fn rules_of_ipv6_alone_are_published_as_what_they_are_for_ipv4() {
        let policy = policy(&["allow 2001:db8::/32"]);
        assert!(allows(&policy, "2001:db8::1", 48099) && !allows(&policy, "192.0.2.7", 48099));
        assert_eq!(policy.published(), [(Verdict::Deny, "*".to_owned())]);
        assert_eq!(Policy::default().published(), []);
    }
}
