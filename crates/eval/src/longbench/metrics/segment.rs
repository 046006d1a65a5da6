//! Chinese word segmentation as in jieba 0.42.1 (accurate mode, HMM on).
//!
//! jieba-rs has the same dictionary and hidden Markov model, and searches them in the same way. Three things around that search
//! differ, and this module restores them:
//! - jieba's blocks are `[\u4E00-\u9FD5a-zA-Z0-9+#&._%-]+`. jieba-rs also includes later ideographs in a block.
//! - jieba splits a run of unknown Latin text by `[a-zA-Z0-9]+(?:\.\d+)?%?`. jieba-rs keeps `a-b`, `a_b` and `1.2.3` whole.
//! - jieba's dictionary file lists one word twice, so its total frequency is larger by 3.
//!
//! One difference remains: jieba-rs rounds the emission probabilities of the model to six decimals. This matters only between
//! equally likely segmentations, in practice for one unknown character that is repeated many times. It usually moves a boundary
//! without changing the set of words.

use std::sync::LazyLock;

use jieba_rs::Jieba;
use regex::Regex;

/// What the word listed twice in jieba's dictionary ("B超", frequency 3) adds to the total frequency.
const LISTED_TWICE: usize = 3;

/// A word that no block can contain, a private-use character. It carries [`LISTED_TWICE`].
const UNREACHABLE: &str = "\u{e000}";

static JIEBA: LazyLock<Jieba> = LazyLock::new(|| {
    let mut jieba = Jieba::new();
    jieba.add_word(UNREACHABLE, Some(LISTED_TWICE), None);
    jieba
});

/// `jieba.cut(text, cut_all=False)`. Every character of `text` is in exactly one token.
#[must_use]
pub fn cut(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let in_block = is_block(first);
        let end = rest.find(|c| is_block(c) != in_block).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        if in_block {
            cut_block(run, &mut tokens);
        } else {
            cut_between(run, &mut tokens);
        }
        rest = after;
    }
    tokens
}

/// jieba's `re_han_default`.
fn is_block(c: char) -> bool {
    matches!(c, '\u{4e00}'..='\u{9fd5}' | '+' | '#' | '&' | '.' | '_' | '%' | '-') || c.is_ascii_alphanumeric()
}

fn cut_block<'a>(block: &'a str, tokens: &mut Vec<&'a str>) {
    for token in JIEBA.cut(block, true) {
        // No dictionary word contains a connector, so the model joined this Latin text.
        if token.word.contains(['.', '_', '-']) {
            split_latin(token.word, tokens);
        } else {
            tokens.push(token.word);
        }
    }
}

/// jieba's `finalseg.re_skip.split`: the matches and the text between them.
fn split_latin<'a>(run: &'a str, tokens: &mut Vec<&'a str>) {
    static LATIN: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[a-zA-Z0-9]+(?:\.[0-9]+)?%?").expect("the pattern is valid"));
    let mut end = 0;
    for found in LATIN.find_iter(run) {
        if found.start() > end {
            tokens.push(&run[end..found.start()]);
        }
        tokens.push(found.as_str());
        end = found.end();
    }
    if end < run.len() {
        tokens.push(&run[end..]);
    }
}

/// Between blocks every character is a token, except that "\r\n" is one token.
fn cut_between<'a>(run: &'a str, tokens: &mut Vec<&'a str>) {
    let mut rest = run;
    while let Some(first) = rest.chars().next() {
        let len = if rest.starts_with("\r\n") { 2 } else { first.len_utf8() };
        let (token, after) = rest.split_at(len);
        tokens.push(token);
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values: `list(jieba.cut(text))` of jieba 0.42.1.
    #[test]
    fn tokens_are_those_of_jieba() {
        for (text, expected) in [
            ("小明硕士毕业于中国科学院计算所", &["小明", "硕士", "毕业", "于", "中国科学院", "计算所"][..]),
            ("abc-def", &["abc", "-", "def"]),
            ("v1.2.3%", &["v1.2", ".", "3%"]),
            ("a_b--c", &["a", "_", "b", "--", "c"]),
            ("C++和AT&T", &["C++", "和", "AT&T"]),
            ("增长50%。\r\n\t好", &["增长", "50%", "。", "\r\n", "\t", "好"]),
            ("他来到了网易杭研大厦", &["他", "来到", "了", "网易", "杭研", "大厦"]),
            ("\u{9fd6}\u{9fd7}中国\u{3400}\u{3401}", &["\u{9fd6}", "\u{9fd7}", "中国", "\u{3400}", "\u{3401}"]),
            ("", &[]),
        ] {
            assert_eq!(cut(text), expected, "{text:?}");
        }
    }

    #[test]
    fn no_dictionary_word_has_a_connector() {
        // The splitting of tokens depends on this: the dictionary's only Latin words are these.
        for word in ["AT&T", "C++", "c++", "C#", "c#"] {
            assert!(JIEBA.has_word(word), "{word}");
        }
        assert_eq!(cut("AT&T-C#"), ["AT&T", "-", "C#"]);
    }
}
