//! Values of every type: what becomes of them in a document, that none is refused, and that they are found.

use pg_test::{Dice, Engine, World, assert_in_step, eventually, on_each_engine};
use serde_json::{Value, json};
use std::time::Duration;

on_each_engine!(
    random_values_of_every_type_arrive,
    values_that_engines_cannot_index_are_not_refused,
    types_with_a_form_of_their_own,
    random_values_of_types_with_a_form_of_their_own_arrive,
    a_scaled_number_is_found_to_its_last_digit,
    places_are_found_by_where_they_are,
    vectors_are_found_by_what_is_near,
    every_type_is_found_by_a_search_that_fits_it,
    types_can_be_chosen,
);

const SETUP: &str = "
    CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree;
    CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy'); CREATE DOMAIN sku AS text; CREATE DOMAIN skus AS sku[];
    CREATE TYPE span AS RANGE (subtype = float8);
    CREATE TYPE pair AS (n numeric, word text, at timestamptz, during tstzrange, price money, spot point, net cidr, raw bytea);
    CREATE TYPE pairs AS (first pair, others pair[], doc jsonb);";

/// A column whose JSON form is that of row_to_json, and how a value is made.
type Make = fn(&mut Dice) -> String;
const PLAIN: &[(&str, Make)] = &[
    ("int2", |dice| format!("{}", dice.below(65_536) as i64 - 32_768)),
    ("int4", |dice| format!("{}", dice.below(1 << 32) as i64 - (1 << 31))),
    ("int8", |dice| pick(dice, &["-9223372036854775808", "9223372036854775807", "0", "9007199254740993"])),
    ("float4", float),
    ("float8", float),
    ("numeric", |dice| match dice.below(4) {
        0 => pick(dice, &["NaN", "Infinity", "-Infinity", "0.00", "-1e-300"]),
        1 => format!("{}{}e{}", sign(dice), dice.below(u64::MAX), dice.below(250)),
        _ => format!("{}{}.{:018}", sign(dice), dice.below(1 << 40), dice.below(1 << 50)),
    }),
    ("numeric(12,2)", |dice| format!("{}{}.{:02}", sign(dice), dice.below(1 << 30), dice.below(100))),
    ("numeric(18,0)", |dice| pick(dice, &["999999999999999999", "-999999999999999999", "NaN", "0"])),
    ("bool", |dice| pick(dice, &["t", "f"])),
    ("text", words),
    ("varchar", words),
    ("char(5)", |dice| pick(dice, &["", "a", "é🚲", "abcde"])),
    ("\"char\"", |dice| pick(dice, &["a", "%", "1"])),
    ("name", |dice| words(dice).chars().take(12).collect()),
    ("citext", words),
    ("uuid", |dice| format!("{:016x}{:016x}", dice.below(u64::MAX), dice.below(u64::MAX))),
    ("mood", |dice| pick(dice, &["sad", "so so", "happy"])),
    ("sku", words),
    ("date", |dice| match dice.below(4) {
        0 => pick(dice, &["infinity", "-infinity", "0044-03-15 BC", "5874897-12-31", "4713-01-01 BC", "0001-01-01"]),
        _ => day(dice),
    }),
    ("time", |dice| pick(dice, &["00:00", "24:00", "23:59:59.999999", "12:30:00.5"])),
    ("timetz", |dice| pick(dice, &["00:00+00", "23:59:59.999999+15:59", "12:30:00.5-08"])),
    ("timestamp", moment),
    ("timestamptz", instant),
    ("interval", |dice| {
        pick(dice, &["1 year 2 mons", "-1 day", "178000000 years", "00:00", "1 mon -1 day 00:00:00.000001"])
    }),
    ("inet", |dice| pick(dice, &["10.1.2.3", "10.1.2.3/8", "::1", "2001:db8::/32", "::ffff:10.0.0.1", "0.0.0.0/0"])),
    ("macaddr", |_| "08:00:2b:01:02:03".into()),
    ("macaddr8", |_| "08:00:2b:01:02:03:04:05".into()),
    ("json", json_text),
    ("jsonb", json_text),
    ("hstore", |dice| pick(dice, &["", "a=>1", "a=>NULL, b=>\"x y\"", "\"é 🚲\"=>\"\\\"\""])),
    ("bytea", |dice| format!("\\x{:08x}", dice.below(1 << 32))),
    ("bit(5)", |dice| format!("{:05b}", dice.below(32))),
    ("varbit", |dice| pick(dice, &["", "1", "0101010101"])),
    ("xml", |dice| pick(dice, &["<a>é</a>", "", "words only", "<a b=\"1\"/>"])),
    ("tsvector", |dice| pick(dice, &["", "'a':1 'b':2A", "words of a text"])),
    ("tsquery", |dice| pick(dice, &["", "a & !b", "a <-> b"])),
    ("ltree", |dice| pick(dice, &["", "Top", "Top.Science.Astronomy"])),
    ("pg_lsn", |_| "16/B374D848".into()),
    ("oid", |dice| dice.below(1 << 32).to_string()),
    ("xid8", |dice| dice.below(u64::MAX).to_string()),
    ("lseg", |_| "[(1,1),(0,0)]".into()),
    ("circle", |_| "<(1,2),3>".into()),
    ("polygon", |_| "((0,0),(1,1),(2,0))".into()),
    ("jsonpath", |_| "$.a[*] ? (@ > 1)".into()),
    ("span", |dice| pick(dice, &["empty", "[1,2)", "(,)", "[-Infinity,NaN]"])),
    ("pair", composite),
    ("pairs", |dice| {
        let (first, other) = (composite(dice), composite(dice));
        format!("({},{},\"{{}}\")", quoted_part(&first), quoted_part(&array(&[other.as_str()])))
    }),
];

fn sign(dice: &mut Dice) -> &'static str {
    if dice.once_in(2) { "-" } else { "" }
}

fn pick(dice: &mut Dice, from: &[&str]) -> String {
    from[dice.below(from.len() as u64) as usize].to_owned()
}

fn float(dice: &mut Dice) -> String {
    match dice.below(3) {
        0 => pick(dice, &["NaN", "Infinity", "-Infinity", "-0", "1e-37", "3.4e38", "-3.4e38", "0.1"]),
        _ => format!("{}{}e{}", sign(dice), dice.below(1 << 50), dice.below(40) as i64 - 25),
    }
}

fn words(dice: &mut Dice) -> String {
    match dice.below(8) {
        0 => String::new(),
        // Too long for a keyword.
        1 if dice.once_in(4) => "é".repeat(20_000),
        _ => {
            let letters = [
                "a", "B", "é", "ß", "日", "🚲", " ", "\"", "\\", "'", "\n", "\t", "\u{1}", "{", "$$", "\u{2028}", "%",
                "ﷺ",
            ];
            (0..dice.below(40)).map(|_| pick(dice, &letters)).collect()
        }
    }
}

fn day(dice: &mut Dice) -> String {
    format!("{:04}-{:02}-{:02}", 1 + dice.below(9999), 1 + dice.below(12), 1 + dice.below(28))
}

fn moment(dice: &mut Dice) -> String {
    match dice.below(6) {
        0 => pick(dice, &["infinity", "-infinity", "0044-03-15 12:00:00 BC", "4713-01-02 00:00:00 BC"]),
        1 => pick(dice, &["294276-01-01 00:00:00", "1970-01-01 00:00:00"]),
        _ => {
            let (hour, minute, second) = (dice.below(24), dice.below(60), dice.below(60));
            format!("{} {hour:02}:{minute:02}:{second:02}.{:06}", day(dice), dice.below(1_000_000))
        }
    }
}

fn instant(dice: &mut Dice) -> String {
    let moment = moment(dice);
    // A zone stands before the era, and infinity has none.
    let zone = if moment.ends_with(|last: char| last.is_ascii_digit()) {
        pick(dice, &["+00", "+05:30", "-12"])
    } else {
        String::new()
    };
    moment + &zone
}

/// Objects of one shape: OpenSearch takes a number where there was a word before, but not both in one document.
fn json_text(dice: &mut Dice) -> String {
    let number = |dice: &mut Dice| match dice.below(3) {
        0 => json!(dice.below(u32::MAX.into())),
        1 => json!(0.5 + dice.below(10) as f64),
        _ => Value::Null,
    };
    let word = |dice: &mut Dice| if dice.once_in(4) { json!("2024-01-01") } else { json!(words(dice)) };
    json!({"a": number(dice), "b": {"c": word(dice), "d": [word(dice), word(dice)]},
           "e": [{"f": dice.once_in(2)}, {"f": number(dice).is_null()}], "g": {}, "h": []})
    .to_string()
}

fn composite(dice: &mut Dice) -> String {
    let parts = [
        dice.below(1000).to_string(),
        quoted_part(&words(dice)),
        quoted_part(&moment(dice)),
        quoted_part("[2024-01-01,2024-02-01)"),
        quoted_part("12.34"),
        quoted_part("(1000,2)"),
        quoted_part("::ffff:10.0.0.0/104"),
        quoted_part("\\x00ff"),
    ];
    format!("({})", parts.join(","))
}

/// A part of a composite or an array literal.
fn quoted_part(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn array(items: &[&str]) -> String {
    format!("{{{}}}", items.iter().map(|item| quoted_part(item)).collect::<Vec<_>>().join(","))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn random_values_of_every_type_arrive(world: &mut World, engine: &Engine) {
    let mut dice = Dice::new();
    world.db.exec(SETUP);
    // A column of each type, one of arrays of it, one of nested arrays.
    let columns: Vec<String> =
        PLAIN.iter().enumerate().map(|(n, (name, _))| format!("v{n} {name}, a{n} {name}[], n{n} {name}[][]")).collect();
    world.db.exec(&format!("CREATE TABLE thing (id int PRIMARY KEY, more skus, {})", columns.join(", ")));
    let sync = world.index_table("thing", engine, "");
    for id in 0..120 {
        let mut values = vec![id.to_string(), literal(&array(&[words(&mut dice).as_str()]))];
        for (name, make) in PLAIN {
            let value = if dice.once_in(8) { "NULL".into() } else { literal(&make(&mut dice)) };
            let some: Vec<String> = (0..dice.below(3)).map(|_| make(&mut dice)).collect();
            let mut some: Vec<&str> = some.iter().map(String::as_str).collect();
            let mut list = array(&some);
            if dice.once_in(3) {
                list = list.replacen('{', if some.is_empty() { "{NULL" } else { "{NULL," }, 1);
            }
            let nested = if some.is_empty() {
                "{}".to_owned()
            } else {
                let inner = array(&some);
                some.reverse();
                format!("{{{inner},{}}}", array(&some))
            };
            values.extend([
                value,
                format!("{}::{name}[]", literal(&list)),
                format!("{}::{name}[][]", literal(&nested)),
            ]);
        }
        world.db.exec(&format!("INSERT INTO thing VALUES ({})", values.join(", ")));
        if id == 60 {
            world.wait(&sync);
        }
    }
    world.db.exec("UPDATE thing SET v0 = -v0 WHERE id < 40 AND v0 > 0");
    world.wait(&sync);
    assert_eq!(world.db.rows("SELECT id, reason FROM fanout.dead_letters LIMIT 3"), Vec::<Vec<Option<String>>>::new());
    assert_in_step(world, &sync);
    // To the byte.
    let cache = world.cache_table("thing", "");
    world.wait(&cache);
    let key = world.key_prefix("thing");
    let others =
        format!("SELECT id FROM thing t WHERE redis_get('cache', '{key}' || id) IS DISTINCT FROM row_to_json(t)::text");
    assert_eq!(world.db.rows(&others), Vec::<Vec<Option<String>>>::new());
}

fn values_that_engines_cannot_index_are_not_refused(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE odd (id int PRIMARY KEY, n numeric, i numeric(18,0), r int8range, nr numrange, dr daterange,
                           tr tsrange, zr tstzrange, mr nummultirange, spot point, net cidr, nets cidr[], spots point[]);
         INSERT INTO odd (id, n) SELECT n, ('1e' || n)::numeric FROM generate_series(300, 1000, 100) n;
         INSERT INTO odd (id, n) VALUES (1, -1e131071), (2, 'NaN'), (3, 'Infinity'), (4, 1e-16000);
         INSERT INTO odd (id, nr) VALUES
             (10, '[NaN,NaN]'), (11, '(1,1.00000000000000000000000000001)'), (12, '[-1e400,1e400]'), (13, '(-Infinity,Infinity)'),
             (14, '(0,1e-400)'), (15, '(1e400,)'), (16, '(,-1e400)'), (17, '(1e-320,2e-320)'), (18, '[1e400,1e401]'), (19, '(,)');
         INSERT INTO odd (id, dr) VALUES
             (20, '[infinity,infinity]'), (21, '[-infinity,infinity]'), (22, '[4000-01-01 BC,3000-01-01 BC]'),
             (23, '[5874890-01-01,5874891-01-01)'), (24, '[9999-12-31,9999-12-31]'), (25, '[0001-01-01,0001-01-01]'), (26, '(,)');
         INSERT INTO odd (id, tr) VALUES
             (30, '(2024-01-01 00:00:00.000001,2024-01-01 00:00:00.000002)'), (31, '[-infinity,infinity]'),
             (32, '(9999-12-31 23:59:59.999999,294276-01-01)'), (33, '(4000-01-01 BC,3000-01-01 BC)'), (34, '(infinity,)'),
             (35, '(2024-01-01,2024-01-01 00:00:00.002)'), (36, '(2024-01-01 00:00:00.0009,2024-01-01 00:00:00.004)');
         INSERT INTO odd (id, zr) SELECT id + 10, tr::text::tstzrange FROM odd WHERE id BETWEEN 30 AND 36;
         INSERT INTO odd (id, r) VALUES (50, '[-9223372036854775808,9223372036854775806]'), (51, '(,)'), (52, 'empty');
         INSERT INTO odd (id, mr) VALUES (60, '{}'), (61, '{[1,2),(3,)}'), (62, '{[NaN,NaN]}');
         INSERT INTO odd (id, spot, spots) VALUES
             (70, '(NaN,1)', '{\"(NaN,1)\",\"(1,2)\"}'), (71, '(Infinity,-Infinity)', '{}'), (72, '(1e300,5)', '{NULL,\"(500,500)\"}'),
             (73, '(181,91)', '{{\"(1,2)\",\"(3,4)\"},{\"(5,6)\",NULL}}');
         INSERT INTO odd (id, net, nets) VALUES
             (80, '::ffff:10.0.0.0/104', '{::ffff:10.0.0.0/104,NULL}'), (81, '::/0', '{}'), (82, '0.0.0.0/0', '{10.0.0.0/8,::1/128}'),
             (83, '::ffff:1.2.3.4/128', NULL), (84, '::ffff:0:0/96', NULL)",
    );
    let sync = world.index_table("odd", engine, "");
    world.wait(&sync);
    assert_eq!(world.db.rows("SELECT id, reason FROM fanout.dead_letters"), Vec::<Vec<Option<String>>>::new());
    let rows = world.db.value("SELECT count(*) FROM odd");
    let index = world.index_name("odd");
    assert_eq!(engine.ask("GET", &format!("/{index}/_count"), None)["count"].to_string(), rows);
}

/// Type, value, the JSON that the document has.
fn types_with_a_form_of_their_own(world: &mut World, engine: &Engine) {
    let cases: &[(&str, &str, Value)] = &[
        ("money", "1234.56", json!(1234.56)),
        ("money", "-0.05", json!(-0.05)),
        ("money[]", "{1,NULL}", json!([1.0, null])),
        ("int4range", "[1,5]", json!({"gte": 1, "lt": 6})),
        ("int4range", "empty", Value::Null),
        ("int4range", "(,5]", json!({"lt": 6})),
        ("int8range", "(,)", json!({})),
        ("numrange", "(1.5,2.5]", json!({"gt": 1.5, "lte": 2.5})),
        ("numrange", "[1.5,)", json!({"gte": 1.5})),
        ("daterange", "[2024-02-28,2024-02-29]", json!({"gte": "2024-02-28", "lt": "2024-03-01"})),
        ("daterange", "[2024-02-28,infinity]", json!({"gte": "2024-02-28", "lt": "9999-12-31"})),
        (
            "tsrange",
            "[2024-01-01,2024-02-01)",
            json!({"gte": "2024-01-01T00:00:00.000000", "lt": "2024-02-01T00:00:00.000000"}),
        ),
        ("tstzrange", "(2024-01-01 05:30+05:30,)", json!({"gt": "2024-01-01T00:00:00.000000Z"})),
        ("int4multirange", "{[1,3),[5,6]}", json!([{"gte": 1, "lt": 3}, {"gte": 5, "lt": 7}])),
        ("int4multirange", "{}", json!([])),
        ("datemultirange", "{[2024-01-01,)}", json!([{"gte": "2024-01-01"}])),
        ("int4range[]", "{\"[1,2)\",empty,NULL}", json!([{"gte": 1, "lt": 2}, null, null])),
        ("int4multirange[]", "{\"{[1,2)}\"}", json!([[{"gte": 1, "lt": 2}]])),
        ("age", "[1,2)", json!({"gte": 1, "lt": 2})),
        ("ages", "{\"[1,2)\"}", json!([{"gte": 1, "lt": 2}])),
        ("point", "(13.4,52.5)", json!([13.4, 52.5])),
        ("point[]", "{\"(13.4,52.5)\"}", json!([[13.4, 52.5]])),
        ("cidr", "10.0.0.0/8", json!("10.0.0.0/8")),
        ("cidr", "::ffff:10.0.0.0/104", json!({"gte": "::ffff:10.0.0.0", "lte": "::ffff:10.255.255.255"})),
    ];
    world.db.exec("CREATE DOMAIN age AS int4range; CREATE DOMAIN ages AS age[]");
    let columns: Vec<String> = cases.iter().enumerate().map(|(n, (name, ..))| format!("c{n} {name}")).collect();
    world.db.exec(&format!("CREATE TABLE form (id int PRIMARY KEY, \"a \"\" name\" text, {})", columns.join(", ")));
    let values: Vec<String> = cases.iter().map(|(_, value, _)| literal(value)).collect();
    world
        .db
        .exec(&format!("INSERT INTO form VALUES (1, 'x', {}); INSERT INTO form (id) VALUES (2)", values.join(", ")));
    let sync = world.index_table("form", engine, "");
    let cache = world.cache_table("form", "");
    world.wait(&sync);
    assert_eq!(world.db.rows("SELECT id, reason FROM fanout.dead_letters"), Vec::<Vec<Option<String>>>::new());
    let (found, empty) = (world.document(engine, "form", "1"), world.document(engine, "form", "2"));
    assert_eq!(found["a \" name"], "x");
    for (n, (name, value, expected)) in cases.iter().enumerate() {
        assert_eq!(found[format!("c{n}")], *expected, "{name} '{value}'");
        assert_eq!(empty[format!("c{n}")], Value::Null, "{name}");
    }
    // A cache has the row as PostgreSQL prints it.
    assert_in_step(world, &cache);
}

/// A type of ranges. Its values are numbered in their order: the literal of one, and its JSON.
struct Line {
    range: &'static str,
    multirange: &'static str,
    /// Whether the next number is the next value: then PostgreSQL gives bounds another form.
    discrete: bool,
    literal: fn(u64) -> String,
    json: fn(u64) -> Value,
}

const LINES: &[Line] = &[
    Line {
        range: "int4range",
        multirange: "int4multirange",
        discrete: true,
        literal: |n| (n as i64 - 500_000).to_string(),
        json: |n| json!(n as i64 - 500_000),
    },
    Line {
        range: "int8range",
        multirange: "int8multirange",
        discrete: true,
        literal: |n| (n as i64 - (1 << 62)).to_string(),
        json: |n| json!(n as i64 - (1 << 62)),
    },
    Line {
        range: "numrange",
        multirange: "nummultirange",
        discrete: false,
        literal: |n| format!("{}.{:03}", n / 1000, n % 1000),
        json: |n| serde_json::from_str(&format!("{}.{:03}", n / 1000, n % 1000)).expect("a number"),
    },
    Line { range: "daterange", multirange: "datemultirange", discrete: true, literal: date, json: |n| json!(date(n)) },
    Line {
        range: "tsrange",
        multirange: "tsmultirange",
        discrete: false,
        literal: |n| time(n, ' '),
        json: |n| json!(time(n, 'T')),
    },
    Line {
        range: "tstzrange",
        multirange: "tstzmultirange",
        discrete: false,
        literal: |n| time(n, ' ') + "+00",
        json: |n| json!(time(n, 'T') + "Z"),
    },
];

/// The day of that number since 0001-01-01.
fn date(days: u64) -> String {
    // Years that begin in March end with the leap day.
    let days = days + 306;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + u64::from(month <= 2))
}

/// Some hours a number, down to the microsecond.
fn time(n: u64, between: char) -> String {
    let micros = n * 9_000_000_017;
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{}{between}{hour:02}:{minute:02}:{second:02}.{micros:06}", date(700_000 + seconds / 86_400))
}

impl Line {
    /// A range between two of its values, and its JSON. What is None has no end there.
    fn between(&self, dice: &mut Dice, from: Option<u64>, to: Option<u64>) -> (String, Value) {
        let (at_from, at_to) = (dice.once_in(2), dice.once_in(2));
        let bound = |n: Option<u64>| n.map(self.literal).unwrap_or_default();
        let (open, close) = (if at_from { '[' } else { '(' }, if at_to { ']' } else { ')' });
        let literal = format!("{open}{},{}{close}", bound(from), bound(to));
        let mut object = serde_json::Map::new();
        let (from, to) = if self.discrete {
            (from.map(|n| n + u64::from(!at_from)), to.map(|n| n + u64::from(at_to)))
        } else {
            (from, to)
        };
        let empty = match (from, to) {
            (Some(from), Some(to)) if self.discrete => from >= to,
            (Some(from), Some(to)) => from == to && !(at_from && at_to),
            _ => false,
        };
        if empty {
            return (literal, Value::Null);
        }
        if let Some(n) = from {
            object.insert(if self.discrete || at_from { "gte" } else { "gt" }.into(), (self.json)(n));
        }
        if let Some(n) = to {
            object.insert(if at_to && !self.discrete { "lte" } else { "lt" }.into(), (self.json)(n));
        }
        (literal, object.into())
    }

    fn range(&self, dice: &mut Dice) -> (String, Value) {
        if dice.once_in(10) {
            return ("empty".into(), Value::Null);
        }
        let from = dice.below(900_000);
        let to = from + if dice.once_in(4) { dice.below(3) } else { dice.below(50_000) };
        let (from, to) = (Some(from).filter(|_| !dice.once_in(8)), Some(to).filter(|_| !dice.once_in(8)));
        self.between(dice, from, to)
    }

    /// Ranges with room between them: they stay apart.
    fn ranges(&self, dice: &mut Dice) -> (String, Value) {
        let mut at = dice.below(100_000);
        let mut step = |dice: &mut Dice| {
            at += 3 + dice.below(10_000);
            Some(at)
        };
        let (parts, expected): (Vec<String>, Vec<Value>) = (0..dice.below(4))
            .map(|number| {
                let (from, to) = (step(dice), step(dice));
                let open = number == 0 && dice.once_in(4);
                self.between(dice, from.filter(|_| !open), to)
            })
            .unzip();
        (format!("{{{}}}", parts.join(",")), expected.into())
    }
}

fn money(dice: &mut Dice) -> (String, Value) {
    let text = format!("{}{}.{:02}", sign(dice), 1 + dice.below(1 << 50), dice.below(100));
    let number = serde_json::from_str(&text).expect("a number");
    (text, number)
}

fn network(dice: &mut Dice) -> (String, Value) {
    let text = if dice.once_in(3) {
        format!("2001:db8:{:x}::/48", 1 + dice.below(0xffff))
    } else {
        let bits = dice.below(33) as u32;
        let address = (dice.below(1 << 32) as u32) & u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        format!("{}/{bits}", std::net::Ipv4Addr::from(address))
    };
    (text.clone(), json!(text))
}

fn spot(dice: &mut Dice) -> (String, Value) {
    // A geo_point has seven digits after the point; the document has all.
    let mut place = |most: u64| format!("{}{}.{:09}", sign(dice), dice.below(most), 1 + dice.below(999_999_999));
    let (x, y) = (place(400), place(200));
    let number = |text: &str| text.parse::<f64>().expect("a number");
    (format!("({x},{y})"), json!([number(&x), number(&y)]))
}

fn random_values_of_types_with_a_form_of_their_own_arrive(world: &mut World, engine: &Engine) {
    let mut dice = Dice::new();
    type Form = Box<dyn Fn(&mut Dice) -> (String, Value)>;
    let mut forms: Vec<(&str, Form)> =
        vec![("money", Box::new(money)), ("cidr", Box::new(network)), ("point", Box::new(spot))];
    for line in LINES {
        forms.push((line.range, Box::new(|dice| line.range(dice))));
        forms.push((line.multirange, Box::new(|dice| line.ranges(dice))));
    }
    let columns: Vec<String> =
        forms.iter().enumerate().map(|(n, (name, _))| format!("v{n} {name}, a{n} {name}[]")).collect();
    world.db.exec(&format!("CREATE TABLE form (id int PRIMARY KEY, {})", columns.join(", ")));
    let sync = world.index_table("form", engine, "");
    let cache = world.cache_table("form", "");
    let mut expected = Vec::new();
    for id in 0..150 {
        let (mut values, mut document) = (vec![id.to_string()], json!({"id": id}));
        for (n, (name, make)) in forms.iter().enumerate() {
            let (literals, jsons): (Vec<String>, Vec<Value>) = (0..dice.below(4)).map(|_| make(&mut dice)).unzip();
            let list: Vec<&str> = literals.iter().map(String::as_str).collect();
            values.push(literals.first().map_or("NULL".into(), |first| literal(first)));
            values.push(format!("{}::{name}[]", literal(&array(&list))));
            document[format!("v{n}")] = jsons.first().cloned().unwrap_or(Value::Null);
            document[format!("a{n}")] = jsons.into();
        }
        world.db.exec(&format!("INSERT INTO form VALUES ({})", values.join(", ")));
        expected.push((values, document));
        if id == 75 {
            world.wait(&sync);
        }
    }
    world.wait(&sync);
    assert_eq!(world.db.rows("SELECT id, reason FROM fanout.dead_letters LIMIT 3"), Vec::<Vec<Option<String>>>::new());
    for (id, (values, document)) in expected.iter().enumerate() {
        let found = world.document(engine, "form", &id.to_string());
        for (field, value) in document.as_object().into_iter().flatten() {
            assert_eq!(found[field], *value, "{field} of {values:?}");
        }
        assert_eq!(found, *document);
    }
    assert_in_step(world, &cache);
}

/// The bare cores that the tests run lack some of what engines bring as modules.
fn a_scaled_number_is_found_to_its_last_digit(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE item (id int PRIMARY KEY, price numeric(10,2), rate numeric(8,4), weight numeric);
         INSERT INTO item SELECT i, i / 100.0, -i / 10000.0, i FROM generate_series(1, 300) AS i;
         INSERT INTO item VALUES (1000, 'NaN', NULL, 1e40), (1001, 99999999.99, 9999.9999, NULL)",
    );
    let probe = world.index_name("probe");
    let body = json!({"mappings": {"properties": {"n": {"type": "scaled_float", "scaling_factor": 10}}}});
    let (status, refusal) = engine.request("PUT", &format!("/{probe}"), Some(body));
    let sync = world.index_table("item", engine, ", types => '{\"numeric\": \"scaled_float\"}'");
    if status != 200 {
        assert!(refusal.to_string().contains("scaled_float"), "{refusal}");
        eventually("the engine's word about it is told", Duration::from_secs(20), || {
            world.status(&sync, "last_error").contains("scaled_float")
        });
        println!("not tested: this {} has no scaled_float", engine.name);
        return;
    }
    assert_in_step(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "0");
    for (field, value, expected) in
        [("price", json!(2.89), "289"), ("rate", json!(-0.0123), "123"), ("price", json!(99_999_999.99), "1001")]
    {
        assert_eq!(world.hits(engine, "item", &json!({"term": {field: value}})), [expected], "{field} {value}");
    }
    let within = json!({"range": {"price": {"gt": 0.28, "lt": 0.30}}});
    assert_eq!(world.hits(engine, "item", &within), ["29"]);
    // Any factor would cut digits off where the column sets no scale.
    let mapping = engine.ask("GET", &format!("/{}/_mapping", world.index_name("item")), None).to_string();
    assert_eq!(mapping.matches("\"scaled_float\"").count(), 2, "{mapping}");
}

/// False, with a word about it, where the server does not have the extension.
fn offers(world: &mut World, extension: &str) -> bool {
    let there =
        world.db.value(&format!("SELECT count(*) FROM pg_available_extensions WHERE name = '{extension}'")) == "1";
    if !there {
        println!("not tested: this PostgreSQL has no extension {extension}; stack/install gets it where it can be had");
    }
    there
}

fn places_are_found_by_where_they_are(world: &mut World, engine: &Engine) {
    if !offers(world, "postgis") {
        return;
    }
    // The bare core of Elasticsearch has no shapes.
    let shapes = engine.name == "opensearch";
    let area = if shapes { "gis.geometry" } else { "gis.geometry(Point)" };
    // 3857 is what web maps are drawn in, in metres.
    world.db.exec(&format!(
        "CREATE SCHEMA gis; CREATE EXTENSION postgis SCHEMA gis; SET search_path = public, gis;
         CREATE TABLE place (id int PRIMARY KEY, spot gis.geography(Point), flat gis.geometry(Point, 3857), area {area});
         INSERT INTO place VALUES
             (1, 'POINT(13.4 52.5)', ST_Transform('SRID=4326;POINT(13.4 52.5)'::geometry, 3857), 'POINT(13.4 52.5)'),
             (2, 'POINT(-70.6 -33.4)', ST_Transform('SRID=4326;POINT(-70.6 -33.4)'::geometry, 3857), 'SRID=4326;POINT(-70.6 -33.4)'),
             (3, NULL, NULL, NULL),
             (4, 'POINT EMPTY', 'SRID=3857;POINT EMPTY', 'POINT EMPTY')",
    ));
    if shapes {
        world.db.exec(
            "INSERT INTO place (id, area) VALUES
                 (5, 'POLYGON((10 50, 11 50, 11 51, 10 51, 10 50), (10.4 50.4, 10.6 50.4, 10.6 50.6, 10.4 50.6, 10.4 50.4))'),
                 (6, ST_Transform('SRID=4326;POLYGON((20 50, 21 50, 21 51, 20 51, 20 50))'::geometry, 3857)),
                 (7, 'CURVEPOLYGON(CIRCULARSTRING(30 50, 32 50, 32 52, 30 52, 30 50))'),
                 (8, 'MULTIPOLYGON(((40 50, 41 50, 41 51, 40 50)), ((45 50, 46 50, 46 51, 45 50)))'),
                 (9, 'POLYGON EMPTY'), (10, 'LINESTRING Z (50 50 7, 52 52 9)'), (11, 'GEOMETRYCOLLECTION EMPTY')",
        );
    }
    let sync = world.index_table("place", engine, "");
    world.wait(&sync);
    assert_eq!(world.db.column("SELECT id || ': ' || reason FROM fanout.dead_letters"), Vec::<String>::new());
    let first = world.document(engine, "place", "1");
    assert_eq!(first["spot"], json!({"type": "Point", "coordinates": [13.4, 52.5]}));
    for id in ["3", "4"] {
        let document = world.document(engine, "place", id);
        assert_eq!(
            (&document["spot"], &document["flat"], &document["area"]),
            (&Value::Null, &Value::Null, &Value::Null)
        );
    }
    let found = |world: &mut World, filter: Value| {
        world.db.column(&format!("SELECT id FROM es_search('{sync}', NULL, filter => '{filter}') ORDER BY id::int"))
    };
    for field in ["spot", "flat"] {
        let near = |lon: f64, lat: f64| json!({"geo_distance": {"distance": "1km", field: [lon, lat]}});
        assert_eq!(found(world, near(13.4, 52.5)), ["1"], "{field}");
        assert_eq!(found(world, near(-70.6, -33.4)), ["2"], "{field}");
        assert_eq!(found(world, near(52.5, 13.4)), Vec::<String>::new(), "{field}: latitude is no longitude");
    }
    if shapes {
        let at = |lon: f64, lat: f64| json!({"geo_shape": {"area": {"shape": {"type": "point", "coordinates": [lon, lat]}}}});
        assert_eq!(found(world, at(10.2, 50.2)), ["5"]);
        assert_eq!(found(world, at(10.5, 50.5)), Vec::<String>::new(), "in its hole");
        assert_eq!(found(world, at(20.5, 50.5)), ["6"]);
        assert_eq!(found(world, at(31.0, 51.0)), ["7"]);
        assert_eq!(found(world, at(45.8, 50.5)), ["8"]);
        let around =
            json!({"geo_shape": {"area": {"shape": {"type": "envelope", "coordinates": [[13, 53], [51, 51]]}}}});
        assert_eq!(found(world, around), ["1", "7", "10"]);
        // What GeoJSON has no form for is set apart, and the others go on.
        world.db.exec("INSERT INTO place (id, area) VALUES (12, 'POLYHEDRALSURFACE(((0 0 0, 1 0 0, 0 1 0, 0 0 0)))')");
        world.db.exec("UPDATE place SET area = 'POINT(100 10)' WHERE id = 1");
        eventually("the others go on", Duration::from_secs(30), || {
            world.document(engine, "place", "1")["area"]["coordinates"] == json!([100, 10])
        });
        eventually("it is told", Duration::from_secs(10), || {
            world.status(&sync, "last_error").contains("PolyhedralSurface")
        });
        world.db.exec("UPDATE place SET area = NULL WHERE id = 12");
    }
    world.db.exec("UPDATE place SET spot = 'POINT(0 0)' WHERE id = 2; DELETE FROM place WHERE id = 1");
    world.wait(&sync);
    assert_eq!(found(world, json!({"geo_distance": {"distance": "1km", "spot": [0, 0]}})), ["2"]);
    assert_eq!(found(world, json!({"geo_distance": {"distance": "1km", "spot": [13.4, 52.5]}})), Vec::<String>::new());
}

fn vectors_are_found_by_what_is_near(world: &mut World, engine: &Engine) {
    if !offers(world, "vector") {
        return;
    }
    world.db.exec(
        "CREATE EXTENSION vector;
         CREATE TABLE item (id int PRIMARY KEY, embedding vector(3), half halfvec(2));
         INSERT INTO item VALUES (1, '[0.5,-1,2]', '[1,2]'), (2, '[-1,1,0]', '[2,1]'), (3, NULL, NULL)",
    );
    let mapping: Value = serde_json::from_str(&world.db.value("SELECT fanout.mapping('item')")).expect("JSON");
    assert_eq!(mapping["mappings"]["properties"]["embedding"], json!({"type": "object", "enabled": false}));
    for (kind, field) in [("dense_vector", json!({"dims": 3})), ("knn_vector", json!({"dimension": 3}))] {
        let chosen = world.db.value(&format!("SELECT fanout.mapping('item', types => '{{\"vector\": \"{kind}\"}}')"));
        let chosen: Value = serde_json::from_str(&chosen).expect("JSON");
        let mut expected = field;
        expected["type"] = json!(kind);
        assert_eq!(chosen["mappings"]["properties"]["embedding"], expected);
    }
    // The core of Elasticsearch has vectors, that of OpenSearch has not.
    let searched = engine.name == "elasticsearch";
    let types =
        if searched { ", types => '{\"vector\": \"dense_vector\", \"halfvec\": \"dense_vector\"}'" } else { "" };
    let sync = world.index_table("item", engine, types);
    world.wait(&sync);
    if !searched {
        // Elasticsearch keeps vectors, but leaves them out of `_source`.
        assert_eq!(world.document(engine, "item", "1")["embedding"], json!([0.5, -1, 2]));
        assert_eq!(world.document(engine, "item", "2")["half"], json!([2, 1]));
        assert_eq!(world.document(engine, "item", "3")["embedding"], Value::Null);
        return;
    }
    let nearest = |world: &World, vector: Value| {
        let query = json!({"knn": {"field": "embedding", "query_vector": vector, "k": 1, "num_candidates": 5}});
        world.hits(engine, "item", &query)
    };
    assert_eq!(nearest(world, json!([0.4, -1, 2])), ["1"]);
    assert_eq!(nearest(world, json!([-1, 1, 0.1])), ["2"]);
    world.db.exec(
        "UPDATE item SET embedding = '[-1,1,0]' WHERE id = 1; UPDATE item SET embedding = '[0.5,-1,2]' WHERE id = 2",
    );
    world.wait(&sync);
    assert_eq!(nearest(world, json!([0.4, -1, 2])), ["2"]);
}

fn every_type_is_found_by_a_search_that_fits_it(world: &mut World, engine: &Engine) {
    world.db.exec(SETUP);
    world.db.exec(
        "CREATE TABLE thing (
             id int PRIMARY KEY, small int2, large int8, ratio float8, amount numeric, price money, yes bool, words text,
             nick citext, u uuid, mood mood, day date, instant timestamptz, clock time, address inet, net cidr, doc jsonb,
             tags hstore, list int[], pair pair, ages int4range, prices numrange, stay daterange, during tstzrange,
             slots tsmultirange, spot point, path ltree
         );
         INSERT INTO thing VALUES (
             1, 7, 9007199254740993, 0.5, 12.5, 12.34, true, 'Trail running shoes', 'MiXed', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
             'so so', '2024-02-29', '2024-02-29 23:59:59.999+05:30', '12:30', '10.1.2.3', '10.0.0.0/8', '{\"a\": {\"n\": 5, \"s\": \"hit\"}}',
             'color=>red', '{1,2,3}', ROW(5, 'word', NULL, NULL, NULL, NULL, NULL, NULL), '[18,65)', '(1.5,2.5)', '[2024-02-01,2024-02-29]',
             '[2024-02-01,2024-03-01)', '{[2024-01-01,2024-02-01),[2024-05-01,)}', '(13.4,52.5)', 'Top.Science'
         );
         INSERT INTO thing (id, words, day, doc) VALUES (2, 'other', 'infinity', '{\"a\": {\"n\": \"no number\", \"s\": 5}}')",
    );
    let sync = world.index_table("thing", engine, "");
    world.wait(&sync);
    let one: &[&str] = &["1"];
    let none: &[&str] = &[];
    let cases = [
        (one, json!({"term": {"small": 7}})),
        (one, json!({"range": {"large": {"gte": 9_007_199_254_740_993_i64, "lte": 9_007_199_254_740_993_i64}}})),
        (none, json!({"range": {"large": {"gt": 9_007_199_254_740_993_i64}}})),
        (one, json!({"range": {"ratio": {"gt": 0.4, "lt": 0.6}}})),
        (one, json!({"range": {"amount": {"gte": 12.5}}})),
        (one, json!({"range": {"price": {"gt": 12.33, "lt": 12.35}}})),
        (one, json!({"term": {"yes": true}})),
        (one, json!({"match": {"words": "SHOES"}})),
        (one, json!({"term": {"words.keyword": "Trail running shoes"}})),
        (one, json!({"term": {"nick.keyword": "mixed"}})),
        (one, json!({"term": {"u": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}})),
        (one, json!({"term": {"mood": "so so"}})),
        (one, json!({"range": {"day": {"gte": "2024-02-29", "lte": "2024-02-29"}}})),
        (one, json!({"range": {"instant": {"gte": "2024-02-29T18:29:59.999Z", "lt": "2024-02-29T18:30:00Z"}}})),
        (one, json!({"term": {"clock": "12:30:00"}})),
        (one, json!({"term": {"address": "10.1.0.0/16"}})),
        (one, json!({"term": {"net": "10.200.0.1"}})),
        (none, json!({"term": {"net": "11.0.0.1"}})),
        (one, json!({"range": {"doc.a.n": {"gte": 5, "lt": 5.5}}})),
        (one, json!({"match": {"doc.a.s": "hit"}})),
        (&["2"], json!({"match": {"doc.a.s": "5"}})),
        (one, json!({"term": {"tags.color.keyword": "red"}})),
        (one, json!({"term": {"list": 2}})),
        (one, json!({"range": {"pair.n": {"gte": 5}}})),
        (one, json!({"match": {"pair.word": "WORD"}})),
        (one, json!({"term": {"ages": 18}})),
        (none, json!({"term": {"ages": 65}})),
        (one, json!({"term": {"prices": 1.6}})),
        (none, json!({"term": {"prices": 1.5}})),
        (one, json!({"term": {"stay": "2024-02-29"}})),
        (none, json!({"term": {"stay": "2024-03-01"}})),
        (one, json!({"term": {"during": "2024-02-29T23:59:59.999Z"}})),
        (none, json!({"term": {"during": "2024-03-01T00:00:00.000Z"}})),
        (one, json!({"term": {"slots": "2024-06-01"}})),
        (none, json!({"term": {"slots": "2024-03-01"}})),
        (one, json!({"range": {"slots": {"gte": "2024-01-15", "lte": "2024-01-20", "relation": "contains"}}})),
        (one, json!({"geo_distance": {"distance": "10km", "spot": {"lat": 52.5, "lon": 13.4}}})),
        (none, json!({"geo_distance": {"distance": "10km", "spot": {"lat": 13.4, "lon": 52.5}}})),
        (one, json!({"prefix": {"path": "Top."}})),
    ];
    for (expected, query) in cases {
        assert_eq!(world.hits(engine, "thing", &query), expected, "{query}");
    }
}

fn types_can_be_chosen(world: &mut World, engine: &Engine) {
    let (flat, scaled) =
        if engine.name == "elasticsearch" { ("flattened", "double") } else { ("flat_object", "scaled_float") };
    world.db.exec(
        "CREATE TABLE thing (id int PRIMARY KEY, amount numeric, price numeric(10,2), doc jsonb, raw json, bytes bytea,
                             stay daterange, span interval, word text, many numeric[], day timestamp);
         INSERT INTO thing VALUES (1, 12345678901234567890.10, 0.29, '{\"a\": {\"b\": \"x\"}}', '[1,\"x\",{\"y\":2}]', '\\x00ff10',
             '[2024-01-01,2024-01-31]', '1 day 00:00:01.5', 'as it is', '{1.50}', '2024-01-01 00:00:00.123456')",
    );
    let types = json!({"numeric": "keyword", "jsonb": flat, "json": "disabled", "bytea": "binary", "daterange": "keyword",
                       "interval": "double", "text": "keyword", "timestamp without time zone": "date_nanos"});
    let mapping = if scaled == "double" {
        json!({"price": {"type": "double"}})
    } else {
        json!({"price": {"type": "scaled_float", "scaling_factor": 100}})
    };
    let sync = world.index_table("thing", engine, &format!(", types => '{types}', mapping => '{mapping}'"));
    world.wait(&sync);
    assert_eq!(world.status(&sync, "dead_letters"), "0");
    let found = world.document(engine, "thing", "1");
    let expected = json!({"id": 1, "amount": "12345678901234567890.10", "price": 0.29, "doc": {"a": {"b": "x"}}, "raw": [1, "x", {"y": 2}],
        "bytes": "AP8Q", "stay": "[2024-01-01,2024-02-01)", "span": 86401.5, "word": "as it is", "many": ["1.50"],
        "day": "2024-01-01T00:00:00.123456"});
    assert_eq!(found, expected);
    for query in [
        json!({"term": {"amount": "12345678901234567890.10"}}),
        json!({"range": {"price": {"gte": 0.29, "lte": 0.29}}}),
        json!({"term": {"doc.a.b": "x"}}),
        json!({"term": {"stay": "[2024-01-01,2024-02-01)"}}),
        json!({"range": {"span": {"gt": 86401}}}),
        json!({"term": {"word": "as it is"}}),
        json!({"term": {"many": "1.50"}}),
        json!({"range": {"day": {"gt": "2024-01-01T00:00:00.123455", "lt": "2024-01-01T00:00:00.123457"}}}),
    ] {
        assert_eq!(world.hits(engine, "thing", &query), ["1"], "{query}");
    }
    let shown = world.db.value("SELECT fanout.mapping('thing', types => '{\"numeric\": \"scaled_float\"}')");
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let properties = &shown["mappings"]["properties"];
    assert_eq!(properties["price"], json!({"type": "scaled_float", "scaling_factor": 100.0, "ignore_malformed": true}));
    assert_eq!(properties["amount"], json!({"type": "double", "ignore_malformed": true}));
}
