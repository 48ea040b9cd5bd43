//! What a visitor types, made safe for an engine's `simple_query_string`.
//!
//! Engines refuse, or choke on, texts that anybody can type: OpenSearch fails over 1,024 clauses or 1,000 parentheses, a
//! few hundred fuzzy words trip a circuit breaker, 20,000 words kept an Elasticsearch busy for minutes. The rule here:
//!
//! - the first [`MAX_BYTES`] bytes count, and of them the words that the budget covers ([`words_for`]). A word is a run of
//!   letters and digits; an ideograph, kana or the like counts as one by itself, for that is how most analyzers cut it;
//! - of a word the first [`MAX_LETTERS`] letters count;
//! - of the operators `*` and `~` the first [`MAX_COSTLY`] each count, `~` with one digit at most; further ones are spaces;
//! - parentheses nest [`MAX_DEPTH`] deep; further ones, and those without a counterpart, are spaces;
//! - control characters are spaces.
//!
//! Everything else goes through as typed.

/// How much of a visitor's text is looked at.
const MAX_BYTES: usize = 4096;
/// How many words count at most.
const MAX_WORDS: usize = 100;
/// How long a word is: longer than any id or hash that is searched for.
const MAX_LETTERS: usize = 256;
/// How many prefixes `*`, and how many fuzzy words or sloppy phrases `~`, count.
const MAX_COSTLY: usize = 8;
/// How deep parentheses nest.
const MAX_DEPTH: usize = 8;
/// Clauses that a query may become: each word is one in every field. The smallest limit of the engines is 1,024.
const CLAUSE_BUDGET: usize = 960;

/// How often a search may be made again with half of its words: see [`bounded`].
pub const MAX_HALVINGS: u32 = 6;

/// How many words count when `fields` fields are searched (0: unknown).
pub fn words_for(fields: usize) -> usize {
    CLAUSE_BUDGET.checked_div(fields).map_or(32, |words| words.clamp(4, MAX_WORDS))
}

/// The bounded text, with at most `max_words` words. `halvings` divides all the bounds by two so many times: for an index
/// whose analyzer makes more of a word than one clause, once the engine has said that it was too much.
pub fn bounded(text: &str, max_words: usize, halvings: u32) -> String {
    let max_words = (max_words >> halvings).max(1);
    let mut bounded = Bounded { costly: MAX_COSTLY >> halvings, ..Bounded::default() };
    let mut rest = text.chars().peekable();
    let max_letters = MAX_LETTERS >> halvings;
    let mut in_word = false;
    let mut letters = 0;
    let mut seen = 0;
    while let Some(character) = rest.next() {
        seen += character.len_utf8();
        if seen > MAX_BYTES {
            break;
        }
        let letter = character.is_alphanumeric();
        if letter && (!in_word || stands_alone(character)) {
            if bounded.words == max_words {
                break;
            }
            bounded.words += 1;
            letters = 0;
        }
        if letter {
            letters += 1;
            if letters > max_letters {
                continue;
            }
        }
        in_word = letter && !stands_alone(character);
        match character {
            '\\' => {
                // An escape and what it escapes stay together; a trailing one escapes nothing.
                match rest.peek() {
                    Some(next) if !next.is_alphanumeric() && !next.is_control() => {
                        bounded.text.push('\\');
                        bounded.text.push(*next);
                        seen += next.len_utf8();
                        rest.next();
                    }
                    _ => bounded.text.push(' '),
                }
            }
            '(' => bounded.open(),
            ')' => bounded.close(),
            '*' => bounded.prefix(),
            '~' => {
                let mut digit = None;
                while let Some(next) = rest.next_if(char::is_ascii_digit) {
                    seen += 1;
                    digit = digit.or(Some(next));
                }
                bounded.fuzzy(digit);
            }
            _ if character.is_control() => bounded.text.push(' '),
            _ => bounded.text.push(character),
        }
    }
    bounded.finish()
}

#[derive(Default)]
struct Bounded {
    text: String,
    words: usize,
    costly: usize,
    prefixes: usize,
    fuzzies: usize,
    /// Where the parentheses that are open stand in `text`.
    open: Vec<usize>,
}

impl Bounded {
    fn open(&mut self) {
        if self.open.len() == MAX_DEPTH {
            self.text.push(' ');
        } else {
            self.open.push(self.text.len());
            self.text.push('(');
        }
    }

    fn close(&mut self) {
        self.text.push(if self.open.pop().is_some() { ')' } else { ' ' });
    }

    fn prefix(&mut self) {
        self.prefixes += 1;
        self.text.push(if self.prefixes <= self.costly { '*' } else { ' ' });
    }

    fn fuzzy(&mut self, digit: Option<char>) {
        self.fuzzies += 1;
        if self.fuzzies > self.costly {
            self.text.push(' ');
        } else {
            self.text.push('~');
            self.text.extend(digit);
        }
    }

    fn finish(mut self) -> String {
        for at in self.open {
            self.text.replace_range(at..=at, " ");
        }
        self.text
    }
}

/// Scripts that are written without spaces: one character is about one word.
fn stands_alone(character: char) -> bool {
    matches!(u32::from(character), 0x0E00..=0x0FFF | 0x1000..=0x109F | 0x1780..=0x17FF | 0x3040..=0x30FF
        | 0x3400..=0x4DBF | 0x4E00..=0x9FFF | 0xAC00..=0xD7AF | 0xF900..=0xFAFF | 0x20000..=0x3FFFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_texts_go_through_as_typed() {
        for text in
            ["trail running shoes", "\"war and peace\"~2 +novel -film", "caf* (blue | red)", "a\\*b", "", "100%"]
        {
            assert_eq!(bounded(text, MAX_WORDS, 0), text);
        }
    }

    #[test]
    fn words_beyond_the_bound_are_left_out() {
        assert_eq!(bounded("one two three four", 2, 0), "one two ");
        assert_eq!(bounded("a-b-c-d", 2, 0), "a-b-");
        assert_eq!(bounded("日本語", 2, 0), "日本");
        assert_eq!(bounded(&"x".repeat(1000), 2, 0).len(), MAX_LETTERS);
        assert_eq!(bounded(&"x".repeat(1000), 2, MAX_HALVINGS).len(), 4);
    }

    #[test]
    fn parentheses_are_balanced_and_shallow() {
        assert_eq!(bounded("(((a", MAX_WORDS, 0), "   a");
        assert_eq!(bounded(")a)", MAX_WORDS, 0), " a ");
        let text = bounded(&"(".repeat(50), MAX_WORDS, 0);
        assert!(!text.contains('('));
    }

    #[test]
    fn costly_operators_are_few() {
        let text = bounded(&"a* b~ ".repeat(30), MAX_WORDS, 0);
        assert_eq!(text.matches('*').count(), MAX_COSTLY);
        assert_eq!(text.matches('~').count(), MAX_COSTLY);
        assert_eq!(bounded("\"a b\"~99999", MAX_WORDS, 0), "\"a b\"~9");
    }

    #[test]
    fn an_escape_escapes_something() {
        assert_eq!(bounded("a\\", MAX_WORDS, 0), "a ");
        assert_eq!(bounded("\\(a", MAX_WORDS, 0), "\\(a");
        assert_eq!(bounded("\\(a)", MAX_WORDS, 0), "\\(a ");
    }

    #[test]
    fn any_text_is_bounded() {
        // A fixed linear congruence instead of a dependency: the alphabet is what operators are made of.
        let alphabet: Vec<char> = "ab 1()*~\"\\+-|\n\u{7f}日é^:".chars().collect();
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        for round in 0..2000 {
            let mut text = String::new();
            for _ in 0..round % 700 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push(alphabet[(state >> 33) as usize % alphabet.len()]);
            }
            let result = bounded(&text, 20, 0);
            assert!(result.len() <= MAX_BYTES + 4);
            assert!(!result.chars().any(char::is_control));
            let plain = unescaped(&result);
            assert!(plain.matches('*').count() <= MAX_COSTLY && plain.matches('~').count() <= MAX_COSTLY);
            let mut depth = 0_usize;
            for character in plain.chars() {
                match character {
                    '(' => depth += 1,
                    ')' => depth = depth.checked_sub(1).expect("a closing parenthesis has an opening one"),
                    _ => {}
                }
                assert!(depth <= MAX_DEPTH);
            }
            assert_eq!(depth, 0);
        }
    }

    fn unescaped(text: &str) -> String {
        let mut plain = String::new();
        let mut rest = text.chars();
        while let Some(character) = rest.next() {
            if character == '\\' {
                rest.next();
            } else {
                plain.push(character);
            }
        }
        plain
    }
}
