//! VQA: answers made comparable, and how right an answer is.
//!
//! Source: the evaluation code published with the VQA data set (Antol et al., 2015; Goyal et al., 2017), quirks
//! included: numbers that differ from everyone else's in the third digit would be of no use.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

/// An answer as the official evaluation compares it: lower case, without punctuation and articles, number words as
/// digits, contractions with their apostrophe. Digits are the ASCII ones.
pub fn normalise_answer(answer: &str) -> String {
    normalise_label(one_line(answer).trim())
}

/// An answer as the Python code of DESIGN.md normalises it, to count the answers that become labels of VQAv2 (those
/// seen at least nine times: 3,129).
///
/// It is [`normalise_answer`] but for tabs, line breaks and the space around the answer, which that one replaces by
/// spaces or removes before it looks at punctuation: only answers with such characters can come out differently.
pub fn normalise_label(answer: &str) -> String {
    words(&without_punctuation(answer))
}

/// What an answer that `count` of ten people gave is worth in training: 0, 0.3, 0.6, 0.9, 1.
///
/// The mean over the ten ways to leave one person out of min(those left who gave it / 3, 1), so that a sum of these
/// is the official score of answers that need no normalising.
pub fn soft_score(count: usize) -> f32 {
    match count {
        0 => 0.0,
        1 => 0.3,
        2 => 0.6,
        3 => 0.9,
        _ => 1.0,
    }
}

/// The official accuracy of `answer`, 0 to 1: the mean over the people of min(others who gave that answer / 3, 1).
///
/// As in the official code, answers are compared as [`normalise_answer`] gives them, but literally where all people
/// said the same. Where there is only one person (a data set that isn't VQAv2) nobody is left out, and the answer
/// is right or wrong. No people: 0.
pub fn score<S: AsRef<str>>(answer: &str, people: &[S]) -> f64 {
    let literal = |answer: &str| one_line(answer).trim().to_owned();
    let mut answer = literal(answer);
    let mut people: Vec<String> = people.iter().map(|person| literal(person.as_ref())).collect();
    let alike = people.iter().all(|other| *other == people[0]);
    if !alike || people.len() == 1 {
        answer = normalise_label(&answer);
        people.iter_mut().for_each(|other| *other = normalise_label(other));
    }
    let count = people.iter().filter(|other| **other == answer).count();
    match people.len() {
        0 => 0.0,
        1 => count as f64,
        all => {
            let worth = |others: usize| (others as f64 / 3.0).min(1.0);
            let sum = count as f64 * worth(count.saturating_sub(1)) + (all - count) as f64 * worth(count);
            sum / all as f64
        }
    }
}

fn one_line(answer: &str) -> Cow<'_, str> {
    if answer.contains(['\n', '\t']) { answer.replace(['\n', '\t'], " ").into() } else { answer.into() }
}

/// Removes what stands by a space, anywhere in the answer, and everything if there is a comma between digits; makes
/// spaces of the rest. The full stop goes where no digit follows, 32 times at most: the official code passes a flag
/// where the number of replacements is expected.
fn without_punctuation(answer: &str) -> String {
    const PUNCTUATION: [char; 21] =
        [';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',', '?', '!'];
    const FULL_STOPS: usize = 32;

    let digit_comma =
        answer.as_bytes().windows(3).any(|at| at[0].is_ascii_digit() && at[1] == b',' && at[2].is_ascii_digit());
    let by_a_space = |mark: char| {
        let mut before = None;
        let mut marks = answer.chars().peekable();
        while let Some(c) = marks.next() {
            if c == mark && (before == Some(' ') || marks.peek() == Some(&' ')) {
                return true;
            }
            before = Some(c);
        }
        false
    };
    let removed = PUNCTUATION.map(|mark| digit_comma || (answer.contains(mark) && by_a_space(mark)));
    let mut spaced = String::with_capacity(answer.len());
    for c in answer.chars() {
        match PUNCTUATION.iter().position(|&mark| mark == c) {
            None => spaced.push(c),
            Some(mark) if removed[mark] => {}
            Some(_) => spaced.push(' '),
        }
    }

    let mut stops = 0;
    let mut out = String::with_capacity(spaced.len());
    let mut rest = spaced.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '.' && stops < FULL_STOPS && !rest.peek().is_some_and(char::is_ascii_digit) {
            stops += 1;
        } else {
            out.push(c);
        }
    }
    out
}

/// Words in lower case: articles dropped, number words as digits, apostrophes restored.
fn words(text: &str) -> String {
    // What Python splits at: Unicode's white space and the four ASCII separators.
    let space = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
    let mut out = String::with_capacity(text.len());
    for word in text.to_lowercase().split(space) {
        let word = match word {
            "" | "a" | "an" | "the" => continue,
            "none" | "zero" => "0",
            "one" => "1",
            "two" => "2",
            "three" => "3",
            "four" => "4",
            "five" => "5",
            "six" => "6",
            "seven" => "7",
            "eight" => "8",
            "nine" => "9",
            "ten" => "10",
            word => CONTRACTIONS.get(word).map_or(word, String::as_str),
        };
        if !out.is_empty() {
            out.push(' ');
        }
        out += word;
    }
    out
}

/// The contractions that the official table restores. Its keys are these with one apostrophe missing, whichever; the
/// keys with capitals can't match a lower-case word.
const CONTRACTED: &str = "
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've
    mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've";

static CONTRACTIONS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    // One entry of the official table is the wrong way round.
    let mut contractions = HashMap::from([("somebody'd".into(), "somebodyd".into())]);
    for word in CONTRACTED.split_whitespace() {
        for (at, _) in word.match_indices('\'') {
            contractions.insert(format!("{}{}", &word[..at], &word[at + 1..]), word.into());
        }
    }
    contractions
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_by_hand() {
        for (answer, normalised) in [
            ("Yes", "yes"),
            ("  a Dog ", "dog"),
            ("the", ""),
            ("", ""),
            ("Two", "2"),
            ("none", "0"),
            ("ten one", "10 1"),
            ("dont know", "don't know"),
            ("don't know", "don't know"),
            ("couldntve", "couldntve"),
            ("couldn'tve", "couldn't've"),
            ("ow's'at", "'ow's'at"),
            ("'ow'sat", "'ow's'at"),
            ("Im", "im"),
            ("lets", "lets"),
            ("somebody'd", "somebodyd"),
            ("somebodyd", "somebodyd"),
            // A mark becomes a space unless it stands by one somewhere, or there is a comma between digits.
            ("black/white", "black white"),
            ("black /white", "black white"),
            ("black/ white/red", "black whitered"),
            ("yes,no", "yes no"),
            ("1,000", "1000"),
            ("1,000 black/white", "1000 blackwhite"),
            ("t-shirt", "t shirt"),
            ("t-shirt, blue", "t shirt blue"),
            // Full stops stay before digits.
            ("p.m.", "pm"),
            ("3.50", "3.50"),
            (".5", ".5"),
            ("5.", "5"),
            ("u.s. 5.0.", "us 5.0"),
            ("what's up?", "what's up"),
            ("a\tdog\nhouse", "dog house"),
            ("ÉCOLE?", "école"),
            ("two\u{1c}dogs", "2 dogs"),
        ] {
            assert_eq!(normalise_answer(answer), normalised, "{answer:?}");
        }
    }

    #[test]
    fn no_more_than_32_full_stops_go() {
        assert_eq!(normalise_answer(&"a.".repeat(34)), format!("{}.a.", "a".repeat(33)));
    }

    #[test]
    fn labels_differ_from_answers_only_in_tabs_and_the_space_around() {
        assert_eq!(normalise_answer(" -a-b"), "b");
        assert_eq!(normalise_label(" -a-b"), "ab");
        assert_eq!(normalise_answer("x\t-y-z"), "x yz");
        assert_eq!(normalise_label("x\t-y-z"), "x y z");
        assert_eq!(normalise_label("Black/white, two"), normalise_answer("Black/white, two"));
    }

    #[test]
    fn the_score_is_the_mean_over_those_left_out() {
        for count in 0..=10 {
            let people: Vec<String> =
                (0..10).map(|i| if i < count { "Cat".into() } else { format!("{i} dogs") }).collect();
            // Leave each person out in turn.
            let mut sum = 0.0;
            for left_out in 0..10 {
                let others = (0..10).filter(|&other| other != left_out && other < count).count();
                sum += (others as f64 / 3.0).min(1.0);
            }
            // Where all said "Cat" it isn't normalised, so "cat." is wrong: the official code's doing.
            let normalised = score("cat.", &people);
            assert!((normalised - if count == 10 { 0.0 } else { sum / 10.0 }).abs() < 1e-12, "{count}: {normalised}");
            assert!((score("Cat", &people) - sum / 10.0).abs() < 1e-12);
            assert!((f64::from(soft_score(count)) - sum / 10.0).abs() < 1e-6, "{count}");
        }
    }

    #[test]
    fn few_people() {
        assert_eq!(score::<&str>("cat", &[]), 0.0);
        assert_eq!(score("A cat", &["cat"]), 1.0);
        assert_eq!(score("dog", &["cat"]), 0.0);
        // Each is alone once the other is left out: 0 and 1/3, then their mean.
        assert!((score("cat", &["cat", "dog"]) - 1.0 / 6.0).abs() < 1e-12);
    }
}
