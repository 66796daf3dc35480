//! What differs between two configurations, key by key.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{BadSetting, ConfError};
use crate::load::{Dict, Value, tree_of, typed};

/// What became of a new configuration beside the one in force.
#[derive(Clone, Debug)]
pub struct Changes<C> {
    /// The one in force with what may change as in the new one.
    pub settings: C,
    /// The keys that changed.
    pub changed: Vec<String>,
    /// The keys that differ and stayed as they were.
    pub kept: Vec<String>,
}

/// Takes from `new` what `may_change`, asked for each dotted key, and keeps all else of `old`. What a type does not write
/// out, as a password, is neither compared nor taken: who calls puts it in.
///
/// # Errors
/// [`ConfError::Defaults`] when the mixture makes no configuration: the fault of who said what may change.
pub fn changes<C>(old: &C, new: &C, may_change: impl Fn(&str) -> bool) -> Result<Changes<C>, ConfError>
where
    C: Serialize + DeserializeOwned,
{
    let mut mixture = tree_of(old)?;
    let (mut changed, mut kept) = (Vec::new(), Vec::new());
    let mut sort = |key: String| {
        let may = may_change(&key);
        if may {
            changed.push(key)
        } else {
            kept.push(key)
        }
        may
    };
    take(&mut mixture, &tree_of(new)?, "", &mut sort);
    let broken = |expected| ConfError::Defaults {
        key: String::new(),
        problem: BadSetting::Wrong { found: "a configuration".into(), expected },
    };
    Ok(Changes { settings: typed(mixture).map_err(broken)?, changed, kept })
}

fn take(old: &mut Dict, new: &Dict, above: &str, sort: &mut impl FnMut(String) -> bool) {
    for (name, value) in new {
        let key = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        match (old.get_mut(name), value) {
            (Some(Value::Dict(_, old)), Value::Dict(_, new)) => take(old, new, &key, sort),
            (Some(old), new) if old == new => {}
            _ => {
                if sort(key) {
                    old.insert(name.clone(), value.clone());
                }
            }
        }
    }
}
