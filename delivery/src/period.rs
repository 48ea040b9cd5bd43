//! One index a period: `${placed_at:month}` and the date in a row's column say which index its document belongs to.
//!
//! | unit | index of 31 December 2024 ends in |
//! | --- | --- |
//! | year | `2024` |
//! | month | `2024-12` |
//! | week (ISO 8601, from Monday) | `2025-w01` |
//! | day | `2024-12-31` |
//!
//! What has no such date, NULL, infinity or a year outside of 1 to 9999, belongs to the index that ends in `none`. So whatever
//! is in the column, its index has a name that engines take.

/// What the name of the index ends in whose rows have no date.
pub const NONE: &str = "none";

/// Why a template is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeriodError {
    /// It is no `${column:unit}`.
    #[error("it must be one placeholder of a column and a unit, such as ${{placed_at:month}}")]
    Form,
    /// Of another unit than there are.
    #[error("\"{0}\" is no unit: it is year, month, week or day")]
    Unit(String),
}

/// How long a period is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Year,
    Month,
    Week,
    Day,
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Period {
    column: String,
    unit: Unit,
}

impl Period {
    /// Parses `${column:unit}`.
    pub fn parse(template: &str) -> Result<Period, PeriodError> {
        let inner = template.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')).ok_or(PeriodError::Form)?;
        let (column, unit) = inner.rsplit_once(':').ok_or(PeriodError::Form)?;
        if column.is_empty() || column.contains("${") {
            return Err(PeriodError::Form);
        }
        let unit = match unit {
            "year" => Unit::Year,
            "month" => Unit::Month,
            "week" => Unit::Week,
            "day" => Unit::Day,
            other => return Err(PeriodError::Unit(other.to_owned())),
        };
        Ok(Period { column: column.to_owned(), unit })
    }

    /// The column.
    pub fn column(&self) -> &str {
        &self.column
    }

    /// What the name of the index ends in for a column that PostgreSQL prints (DateStyle ISO, TimeZone UTC) as `text`.
    ///
    /// ```
    /// use delivery::period::Period;
    /// let period = Period::parse("${placed_at:month}").unwrap();
    /// assert_eq!(period.suffix(Some("2024-12-31 23:59:59.9+00")), "2024-12");
    /// assert_eq!(period.suffix(None), "none");
    /// ```
    pub fn suffix(&self, text: Option<&str>) -> String {
        let Some((year, month, day)) = text.and_then(date) else { return NONE.to_owned() };
        match self.unit {
            Unit::Year => format!("{year:04}"),
            Unit::Month => format!("{year:04}-{month:02}"),
            Unit::Day => format!("{year:04}-{month:02}-{day:02}"),
            Unit::Week => {
                let number = days(year, month, day);
                // The year of a week is that of its Thursday.
                let thursday = number - weekday(number) + 3;
                let (year, ..) = civil(thursday);
                format!("{year:04}-w{:02}", (thursday - days(year, 1, 1)) / 7 + 1)
            }
        }
    }

    /// The first date of the period that a name ends in, as PostgreSQL reads it: NULL for `none`. `None` if no name of this
    /// period ends so.
    pub fn first(&self, suffix: &str) -> Option<Option<String>> {
        if suffix == NONE {
            return Some(None);
        }
        let first = match self.unit {
            Unit::Year => format!("{suffix}-01-01"),
            Unit::Month => format!("{suffix}-01"),
            Unit::Day => suffix.to_owned(),
            Unit::Week => {
                let (year, week) = suffix.split_once("-w")?;
                let (year, week) = (year.parse().ok()?, week.parse::<i64>().ok()?);
                // 4 January is always in the first week.
                let fourth = days(year, 1, 4);
                let (year, month, day) = civil(fourth - weekday(fourth) + (week - 1) * 7);
                format!("{year:04}-{month:02}-{day:02}")
            }
        };
        (self.suffix(Some(&first)) == suffix).then_some(Some(first))
    }
}

/// Year, month and day at the beginning of a date or timestamp in ISO form; None if there is none between the years 1 and 9999.
fn date(text: &str) -> Option<(i64, i64, i64)> {
    let (head, rest) = text.split_at_checked("2024-12-31".len())?;
    if text.ends_with("BC") || !(rest.is_empty() || rest.starts_with([' ', 'T'])) {
        return None;
    }
    let bytes = head.as_bytes();
    let digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    if bytes[4] != b'-' || bytes[7] != b'-' || !digits(&bytes[..4]) || !digits(&bytes[5..7]) || !digits(&bytes[8..]) {
        return None;
    }
    let (year, month, day) = (head[..4].parse().ok()?, head[5..7].parse().ok()?, head[8..].parse().ok()?);
    let real = year > 0 && civil(days(year, month, day)) == (year, month, day);
    real.then_some((year, month, day))
}

/// Days since 1970-01-01 of a date of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March: the day that some years have more comes last.
    let year = if month > 2 { year } else { year - 1 };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date that so many days since 1970-01-01 are.
fn civil(number: i64) -> (i64, i64, i64) {
    let number = number + 719_468;
    let (era, of_era) = (number.div_euclid(146_097), number.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// Days since Monday.
fn weekday(number: i64) -> i64 {
    (number + 3).rem_euclid(7)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNITS: [&str; 4] = ["year", "month", "week", "day"];

    fn of(unit: &str) -> Period {
        Period::parse(&format!("${{at:{unit}}}")).unwrap()
    }

    #[test]
    fn what_is_refused() {
        for template in ["", "at", "${at}", "${:month}", "orders-${at:month}", "${at:month}x", "${a}${b:day}"] {
            assert_eq!(Period::parse(template), Err(PeriodError::Form), "{template}");
        }
        assert_eq!(Period::parse("${at:YYYY-MM}"), Err(PeriodError::Unit("YYYY-MM".into())));
        assert_eq!(Period::parse("${a:b:day}").unwrap().column(), "a:b");
    }

    #[test]
    fn weeks_are_those_of_iso_8601() {
        for (text, suffix) in [
            ("2024-12-29", "2024-w52"),
            ("2024-12-30 00:00:00+00", "2025-w01"),
            ("2021-01-03", "2020-w53"),
            ("2021-01-04", "2021-w01"),
            ("0001-01-01", "0001-w01"),
            ("9999-12-31", "9999-w52"),
        ] {
            assert_eq!(of("week").suffix(Some(text)), suffix, "{text}");
        }
    }

    #[test]
    fn what_has_no_date_has_an_index_too() {
        let odd = [
            "infinity",
            "-infinity",
            "0044-03-15 BC",
            "0044-03-15 12:00:00+00 BC",
            "10000-01-01",
            "294276-12-31 23:59:59",
            "2024-13-01",
            "2024-02-30",
            "",
            "2024-é-01-01",
            "../../x",
        ];
        for unit in UNITS {
            assert_eq!(of(unit).suffix(None), NONE);
            assert_eq!(of(unit).first(NONE), Some(None));
            for text in odd {
                assert_eq!(of(unit).suffix(Some(text)), NONE, "{text}");
                assert_eq!(of(unit).first(text), None, "{text}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_period_has_a_first_date(number in -719_162i64..2_932_897) {
            let (year, month, day) = civil(number);
            prop_assert_eq!(days(year, month, day), number);
            let text = format!("{year:04}-{month:02}-{day:02}");
            for unit in UNITS {
                let suffix = of(unit).suffix(Some(&text));
                prop_assert!(suffix.len() <= "2024-12-31".len());
                let first = of(unit).first(&suffix).flatten().unwrap();
                prop_assert!(first <= text, "{} {}", first, text);
                prop_assert_eq!(of(unit).suffix(Some(&first)), suffix);
            }
        }

        #[test]
        fn whatever_is_in_the_column_the_name_is_one(text in any::<String>()) {
            for unit in UNITS {
                let suffix = of(unit).suffix(Some(&text));
                prop_assert!(suffix.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase() || byte == b'-'));
                let _ = of(unit).first(&text);
            }
        }
    }
}
