//! Quantities as people type them: `2G`, `90s`.

use std::time::Duration;

/// What a number of a field counts, told by the end of the field's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bytes.
    Byte,
    /// 1024² bytes.
    Mebibyte,
    /// 1024³ bytes.
    Gibibyte,
    /// Seconds.
    Second,
}

impl Unit {
    pub(crate) fn of(field: &str) -> Option<Self> {
        match field.rsplit('_').next()? {
            "bytes" => Some(Self::Byte),
            "mib" => Some(Self::Mebibyte),
            "gib" => Some(Self::Gibibyte),
            "seconds" => Some(Self::Second),
            _ => None,
        }
    }

    /// Reads a number with a unit (`2G`, `5m`) as this many of this unit; `None` if it is no such number.
    pub(crate) fn parse(self, text: &str) -> Option<Result<u64, String>> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        let number: u64 = number.parse().ok()?;
        if suffix.is_empty() {
            return None;
        }
        if self == Self::Second {
            return Some(
                seconds_in(suffix)
                    .map(|factor| number.saturating_mul(factor))
                    .ok_or_else(|| format!("`{suffix}` is no unit of time; use s, m, h, d, as in 90s")),
            );
        }
        let Some(power) = binary_power(suffix) else {
            return Some(Err(format!("`{suffix}` is no unit of size; use K, M, G, T, as in 512M")));
        };
        let bytes = u128::from(number) << (10 * power);
        let divisor = match self {
            Self::Byte | Self::Second => 1,
            Self::Mebibyte => 1 << 20,
            Self::Gibibyte => 1 << 30,
        };
        if bytes % divisor != 0 {
            return Some(Err(format!(
                "{text} is no whole number of {}",
                if self == Self::Gibibyte { "GiB" } else { "MiB" }
            )));
        }
        Some(u64::try_from(bytes / divisor).map_err(|_| format!("{text} is too much")))
    }
}

fn binary_power(suffix: &str) -> Option<u32> {
    match suffix.to_ascii_lowercase().as_str() {
        "b" => Some(0),
        "k" | "kib" => Some(1),
        "m" | "mib" => Some(2),
        "g" | "gib" => Some(3),
        "t" | "tib" => Some(4),
        "p" | "pib" => Some(5),
        _ => None,
    }
}

fn seconds_in(suffix: &str) -> Option<u64> {
    match suffix {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        _ => None,
    }
}

/// Reads `90s`, `5m`, `2h`, `7d`, or a plain number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let seconds = match text.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => {
            Unit::Second.parse(text).ok_or_else(|| format!("`{text}` is no duration; write it as 90s, 5m or 2h"))??
        }
    };
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_whole() {
        assert_eq!(Unit::Mebibyte.parse("2G"), Some(Ok(2048)));
        assert_eq!(Unit::Gibibyte.parse("1TiB"), Some(Ok(1024)));
        assert_eq!(Unit::Mebibyte.parse("512"), None);
        assert!(Unit::Gibibyte.parse("512M").unwrap().is_err());
        assert!(Unit::Byte.parse("1x").unwrap().is_err());
        assert!(Unit::Byte.parse("99999999999999P").unwrap().is_err());
        assert_eq!(Unit::of("grace_seconds"), Some(Unit::Second));
    }

    #[test]
    fn durations_have_a_unit_or_are_seconds() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert!(duration("2w").is_err() && duration("").is_err() && duration("-1s").is_err());
    }
}
