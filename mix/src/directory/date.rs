//! Dates and times as descriptors and directories write them (dir-spec 2.4).
//!
//! A date means the midnight, UTC, with which it begins. This is the only file of the directory that knows a calendar.

use std::time::{Duration, SystemTime};

use jiff::civil::{Date, DateTime, Time};

/// No date before this year is taken, as in the reference: times count from 1970.
const FIRST_YEAR: i16 = 1970;

/// Reads `YYYY-MM-DD`, or `YYYY/MM/DD` as versions before 0.0.6 wrote it.
pub fn parse_date(text: &str) -> Option<SystemTime> {
    let separator = if text.contains('/') { '/' } else { '-' };
    instant(date(text, separator)?.to_datetime(Time::midnight()))
}

/// Reads `YYYY-MM-DD HH:MM:SS`, with three or four decimals of a second or none.
pub fn parse_time(text: &str) -> Option<SystemTime> {
    let (day, clock) = text.split_once([' ', '\t'])?;
    let (clock, fraction) = clock.trim_start_matches([' ', '\t']).split_once('.').unwrap_or((clock.trim_start(), ""));
    let nanoseconds = match fraction.len() {
        0 if !clock.is_empty() && !text.ends_with('.') => 0,
        // Three decimals in the reference, four in the specification's picture of the format.
        3 | 4 => number::<i32>(fraction, fraction.len())? * 10_i32.pow(9 - fraction.len() as u32),
        _ => return None,
    };
    let mut parts = clock.split(':').map(|part| number::<i8>(part, 2));
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() {
        return None;
    }
    // Up to two leap seconds, as in the reference: they belong to the next minute.
    let leap = u64::try_from(second - 59).unwrap_or(0);
    let time = Time::new(hour, minute, second.min(59), nanoseconds).ok().filter(|_| leap <= 2)?;
    instant(date(day, '-')?.to_datetime(time))?.checked_add(Duration::from_secs(leap))
}

/// Writes the day of `time` as `YYYY-MM-DD`; `None` past the year 9999.
pub fn format_date(time: SystemTime) -> Option<String> {
    Some(civil(time)?.date().to_string())
}

/// Writes `time` as `YYYY-MM-DD HH:MM:SS`; `None` past the year 9999.
pub fn format_time(time: SystemTime) -> Option<String> {
    let civil = civil(time)?;
    let (hour, minute, second) = (civil.hour(), civil.minute(), civil.second());
    Some(format!("{} {hour:02}:{minute:02}:{second:02}", civil.date()))
}

/// The midnight, UTC, at or before `time`; `None` past the year 9999.
pub fn midnight(time: SystemTime) -> Option<SystemTime> {
    instant(civil(time)?.date().to_datetime(Time::midnight()))
}

fn date(text: &str, separator: char) -> Option<Date> {
    let mut parts = text.split(separator);
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let year = number::<i16>(year, 4).filter(|year| *year >= FIRST_YEAR)?;
    match parts.next() {
        // 2026-02-30 ends here: the reference takes it for the second of March.
        None => Date::new(year, number(month, 2)?, number(day, 2)?).ok(),
        Some(_) => None,
    }
}

/// A number of exactly `len` digits.
fn number<T: std::str::FromStr>(text: &str, len: usize) -> Option<T> {
    let digits = text.len() == len && text.bytes().all(|c| c.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Civil times are counted from here. `jiff::Timestamp` would end a day before the calendar, to leave room for time zones.
const EPOCH: DateTime = DateTime::constant(FIRST_YEAR, 1, 1, 0, 0, 0, 0);

fn civil(time: SystemTime) -> Option<DateTime> {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    EPOCH.checked_add(since_epoch).ok()
}

fn instant(civil: DateTime) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(civil.duration_since(EPOCH).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_date_is_the_midnight_it_begins_with() {
        assert_eq!(parse_date("2026-11-20"), Some(at(1_795_132_800)));
        assert_eq!(parse_date("2026/11/20"), Some(at(1_795_132_800)));
        assert_eq!(format_date(at(1_795_132_800 + 3600)), Some("2026-11-20".to_owned()));
        assert_eq!(midnight(at(1_795_132_800 + 86_399)), Some(at(1_795_132_800)));
    }

    #[test]
    fn a_day_that_no_calendar_has_is_refused() {
        let refused =
            ["2026-02-30", "2026-13-01", "26-11-20", "20-11-2026", "2026-11/20", "1969-12-31", "2026-11-20 ", ""];
        for text in refused {
            assert_eq!(parse_date(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_may_have_three_or_four_decimals() {
        assert_eq!(parse_time("2026-11-20 10:11:12"), Some(at(1_795_169_472)));
        assert_eq!(parse_time("2026-11-20 10:11:12.250"), Some(at(1_795_169_472) + Duration::from_millis(250)));
        assert_eq!(parse_time("2026-11-20 10:11:12.2500"), Some(at(1_795_169_472) + Duration::from_millis(250)));
        assert_eq!(format_time(at(1_795_169_472)), Some("2026-11-20 10:11:12".to_owned()));
        let refused =
            ["2026-11-20", "2026-11-20 24:00:00", "2026-11-20 10:11", "2026-11-20 10:11:12.", "2026-11-20 10:11:62"];
        for text in refused {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn the_last_day_of_the_calendar_is_a_day() {
        assert_eq!(parse_date("9999-12-31"), Some(at(253_402_214_400)));
        assert_eq!(format_date(at(253_402_214_400 + 86_399)), Some("9999-12-31".to_owned()));
        assert_eq!(format_date(at(253_402_214_400 + 86_400)), None);
        assert_eq!(parse_time("9999-12-31 23:59:59"), Some(at(253_402_214_400 + 86_399)));
    }

    #[test]
    fn leap_seconds_belong_to_the_next_minute() {
        assert_eq!(parse_time("2026-11-20 10:11:60"), Some(at(1_795_169_520)));
        assert_eq!(parse_time("2026-11-20 23:59:61"), Some(at(1_795_132_800 + 86_401)));
    }

    #[test]
    fn a_time_that_no_calendar_reaches_is_not_written() {
        assert_eq!(format_date(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 50)), None);
        assert_eq!(midnight(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), None);
    }
}
