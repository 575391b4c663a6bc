//! The text of a stream: made once from its seed, shared by all cores, cut and looked up by the columns.

use super::timeline::Kind;
use super::views::{TextPool, TextTable};
use crate::connect::random::{RandomStream, below, below_wide, high, low};

/// Channels that half of the bids come through, in the order of their place in [`Text::channels`].
const HOT_CHANNELS: [&str; 4] = ["Google", "Facebook", "Baidu", "Apple"];
/// The other channels, `channel-0` and up, follow the hot ones.
const CHANNELS: usize = 10_000;

const FIRST_NAMES: [&str; 11] = ["Peter", "Paul", "Luke", "John", "Saul", "Vicky", "Kate", "Julie", "Sarah", "Deiter", "Walter"];
const LAST_NAMES: [&str; 9] = ["Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones", "Noris"];
const CITIES: [&str; 10] =
    ["Phoenix", "Los Angeles", "San Francisco", "Boise", "Portland", "Bend", "Redmond", "Seattle", "Kent", "Cheyenne"];
const STATES: [&str; 6] = ["AZ", "CA", "ID", "OR", "WA", "WY"];

/// `extra` columns are cut from so much random text.
const EXTRA_BYTES: usize = EXTRA_GROUP * 90_000;
/// So many characters of `extra` in a row are all from the same half of its alphabet; cuts begin at such a group.
const EXTRA_GROUP: usize = 6;
/// Names and descriptions are cut from so much random text.
const WORDS_BYTES: usize = 1 << 16;

/// The shortest random word.
const WORD_BYTES_MIN: usize = 3;

/// All text that a stream is made of.
#[derive(Debug)]
pub struct Text {
    /// What `extra` is cut from.
    pub extra: TextPool,
    /// What `itemName` and `description` are cut from.
    pub words: TextPool,
    /// Channels: the four hot ones, then `channel-0` to `channel-9999`.
    pub channels: TextTable,
    /// The URL of each channel.
    pub urls: TextTable,
    /// First name and last name.
    pub names: TextTable,
    /// Cities.
    pub cities: TextTable,
    /// States.
    pub states: TextTable,
}

impl Text {
    /// The longest `extra` that can be asked for, so that there are always many places to cut it from.
    pub const EXTRA_BYTES_MAX: usize = EXTRA_BYTES / 4;

    /// The text of `seed`.
    pub fn new(seed: u64) -> Self {
        let urls = RandomStream::new(seed, u64::from_le_bytes(*b"urls    "));
        let numbers = (0..HOT_CHANNELS.len() + CHANNELS).map(|i| i.checked_sub(HOT_CHANNELS.len()));
        Self {
            extra: TextPool::new(extra_bytes(RandomStream::new(seed, u64::from_le_bytes(*b"extra   ")))),
            words: TextPool::new(words_bytes(RandomStream::new(seed, u64::from_le_bytes(*b"words   ")), WORDS_BYTES, b' ')),
            channels: TextTable::new(
                HOT_CHANNELS.iter().map(|&hot| hot.to_owned()).chain((0..CHANNELS).map(|i| format!("channel-{i}"))),
            ),
            urls: TextTable::new(numbers.enumerate().map(|(place, number)| url(urls, place as u64, number))),
            names: TextTable::new(FIRST_NAMES.iter().flat_map(|first| LAST_NAMES.map(|last| format!("{first} {last}")))),
            cities: TextTable::new(CITIES),
            states: TextTable::new(STATES),
        }
    }

    /// The place in [`Self::channels`] and [`Self::urls`] that 33 random bits choose: a hot one in half of the cases.
    #[inline]
    pub fn channel(hot: bool, bits: u32) -> usize {
        if hot {
            below(bits, HOT_CHANNELS.len() as u64) as usize
        } else {
            HOT_CHANNELS.len() + below(bits, CHANNELS as u64) as usize
        }
    }

    /// Where a random word of 3 to `end - 1` characters (before spaces are trimmed) is cut from [`Self::words`]: offset and length.
    #[inline]
    pub fn word_cut(word: u64, end: usize) -> (usize, usize) {
        let len = WORD_BYTES_MIN + below(high(word), (end - WORD_BYTES_MIN) as u64) as usize;
        (below(low(word), (WORDS_BYTES - len + 1) as u64) as usize, len)
    }

    /// Appends a random word of 3 to `end - 1` characters, spaces trimmed, to `out`.
    pub fn push_word(random: RandomStream, index: u64, end: usize, out: &mut String) {
        let len = WORD_BYTES_MIN + below_wide(random.word_of(index, 0), (end - WORD_BYTES_MIN) as u64) as usize;
        let bytes = words_bytes_at(random, index, len, b' ');
        out.push_str(std::str::from_utf8(bytes.trim_ascii()).expect("random words are ASCII"));
    }
}

/// The sizes of an `extra` column: what fills rows up to their average size, ±20 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtraSize {
    min: usize,
    spread: u64,
}

impl ExtraSize {
    /// For rows whose other columns have `used` bytes.
    #[inline]
    pub fn new(used: usize, average: usize) -> Self {
        let wanted = average.saturating_sub(used);
        let delta = (2 * wanted + 5) / 10;
        Self { min: wanted - delta, spread: 2 * delta as u64 }
    }

    /// Where 64 random bits cut the text of one row: offset and length.
    #[inline]
    pub fn cut(self, word: u64) -> (usize, usize) {
        let len = self.min + below(high(word), self.spread) as usize;
        (EXTRA_GROUP * below(low(word), ((EXTRA_BYTES - Text::EXTRA_BYTES_MAX) / EXTRA_GROUP) as u64) as usize, len)
    }
}

/// The sizes of the fixed columns of each kind's rows, as the benchmark counts them; strings come on top.
pub fn fixed_bytes(kind: Kind) -> usize {
    match kind {
        Kind::Person => 8,
        Kind::Auction => 48,
        Kind::Bid => 32,
    }
}

/// The original takes remainders of signed numbers, six characters from each: half of the groups are of `a`–`z`, half of `H`–`a`.
fn extra_bytes(random: RandomStream) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(EXTRA_BYTES);
    for group in 0..(EXTRA_BYTES / EXTRA_GROUP) as u64 {
        let word = random.word(group);
        let (negative, mut rest) = (word >> 63 == 1, (word & 0x7fff_ffff) as u32);
        for _ in 0..EXTRA_GROUP {
            let digit = (rest % 26) as u8;
            bytes.push(if negative { b'a' - digit } else { b'a' + digit });
            rest /= 26;
        }
    }
    bytes
}

/// Lower-case letters with `gap` in place of one in thirteen.
fn words_bytes(random: RandomStream, len: usize, gap: u8) -> Vec<u8> {
    (0..len as u64).map(|i| letter(random.word(i), gap)).collect()
}

fn words_bytes_at(random: RandomStream, index: u64, len: usize, gap: u8) -> Vec<u8> {
    (1..=len as u64).map(|ordinal| letter(random.word_of(index, ordinal), gap)).collect()
}

fn letter(word: u64, gap: u8) -> u8 {
    if below(high(word), 13) == 0 { gap } else { b'a' + below(low(word), 26) as u8 }
}

/// Three random folders, a fixed page, and for nine in ten of the numbered channels the channel's number with its bits reversed.
fn url(random: RandomStream, place: u64, number: Option<usize>) -> String {
    let mut url = "https://www.nexmark.com/".to_owned();
    for folder in 0..3 {
        let len = WORD_BYTES_MIN + below(low(random.word_of(place, 1 + folder)), 2) as usize;
        let letters = RandomStream::new(random.word_of(place, 4 + folder), folder);
        url.extend(words_bytes(letters, len, b'_').into_iter().map(char::from));
        url.push('/');
    }
    url.push_str("item.htm?query=1");
    if let Some(number) = number.filter(|_| below(low(random.word(place)), 10) > 0) {
        let reversed = i32::try_from(number).expect("channels are few").reverse_bits().wrapping_abs();
        url.push_str(&format!("&channel_id={reversed}"));
    }
    url
}

#[cfg(test)]
mod tests {
    use super::super::timeline::Run;
    use super::*;

    fn texts(table: &TextTable) -> Vec<String> {
        let all = [Run { round: 0, events: 0..table.len() as u64 }];
        table.take(&all, table.len(), |number| number as usize).iter().flatten().map(str::to_owned).collect()
    }

    #[test]
    fn urls_have_three_folders_and_most_of_the_numbered_ones_a_channel_id() {
        let text = Text::new(7);
        let (channels, urls) = (texts(&text.channels), texts(&text.urls));
        assert_eq!(channels[..6], ["Google", "Facebook", "Baidu", "Apple", "channel-0", "channel-1"]);
        assert_eq!((channels.len(), urls.len()), (10_004, 10_004));
        let form = regex::Regex::new(r"^https://www\.nexmark\.com/([a-z_]{3,4}/){3}item\.htm\?query=1(&channel_id=-?\d+)?$")
            .expect("a pattern");
        assert!(urls.iter().all(|url| form.is_match(url)), "{:?}", urls.iter().find(|url| !form.is_match(url)));
        let with_id = urls.iter().filter(|url| url.contains("channel_id")).count();
        assert!((8900..9100).contains(&with_id), "{with_id} of 10 000");
        assert!(urls[..4].iter().all(|url| !url.contains("channel_id")));
        // As in the reference events: channel-2773 has the id 1420820480.
        if urls[4 + 2773].contains("channel_id") {
            assert!(urls[4 + 2773].ends_with("&channel_id=1420820480"));
        }
        assert!(urls.iter().collect::<std::collections::HashSet<_>>().len() > 9900);
    }

    #[test]
    fn extra_is_of_both_halves_of_its_alphabet_in_groups_of_six() {
        let bytes = extra_bytes(RandomStream::new(3, 0));
        let lower = bytes.chunks(6).filter(|group| group.iter().all(|b: &u8| b.is_ascii_lowercase())).count();
        let upper = bytes.chunks(6).filter(|group| group.iter().all(|b| (b'H'..=b'a').contains(b))).count();
        let groups = bytes.len() / 6;
        assert!(lower + upper >= groups && lower.abs_diff(upper) < groups / 50, "{lower} and {upper} of {groups}");
    }

    #[test]
    fn extra_fills_rows_up_to_their_average() {
        // 100 bytes a bid, 32 of them fixed: 54 to 81 characters.
        let size = ExtraSize::new(32, 100);
        let random = RandomStream::new(9, 9);
        let lens: Vec<_> = (0..10_000).map(|i| size.cut(random.word(i)).1).collect();
        assert_eq!((lens.iter().min(), lens.iter().max()), (Some(&54), Some(&81)));
        assert_eq!(ExtraSize::new(200, 100).cut(u64::MAX).1, 0);
        assert_eq!(ExtraSize::new(100, 100).cut(u64::MAX).1, 0);
    }
}
