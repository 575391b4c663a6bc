//! Columns from event numbers. Every value is a pure function of the settings, the seed and its event's number, and of nothing else, so
//! that a column is the same whether its neighbours are made or not, and on whichever core.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, StringViewBuilder, TimestampMicrosecondArray};

use super::text::{ExtraSize, Text, fixed_bytes};
use super::timeline::{Kind, Run, Timeline};
use super::views::PoolViews;
use crate::connect::random::{RandomStream, below, below_wide, high, low};

/// The first auction and the first person have this id.
const FIRST_ID: i64 = 1000;
/// Bidders' ids begin here: the original adds [`FIRST_ID`] to them twice.
const FIRST_BIDDER_ID: i64 = 2 * FIRST_ID;
const FIRST_CATEGORY_ID: i64 = 10;
const CATEGORIES: u64 = 5;
/// Every so many ids begin with a hot one.
const HOT_BATCH: i64 = 100;
/// Bids choose among so many of the newest auctions.
const IN_FLIGHT_AUCTIONS: i64 = 100;
/// Bids and auctions choose among so many of the newest persons.
const ACTIVE_PERSONS: i64 = 1000;
/// Ids may be used so many before they exist.
const ID_LEAD: i64 = 10;
/// Names have fewer characters than this.
const NAME_END: usize = 20;
/// Descriptions have fewer characters than this.
const DESCRIPTION_END: usize = 100;

/// What the table's options say of the data.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Clock and proportions.
    pub timeline: Timeline,
    /// Average bytes of a row of each kind.
    pub average_bytes: [usize; 3],
    /// One in so many bids is not for a hot auction.
    pub hot_auction_ratio: u64,
    /// One in so many bids is not by a hot bidder.
    pub hot_bidder_ratio: u64,
    /// One in so many auctions is not by a hot seller.
    pub hot_seller_ratio: u64,
    /// What everything random follows from.
    pub seed: u64,
}

macro_rules! columns {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $column:literal : $value:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $(#[doc = $column] $variant),* }

        impl $name {
            /// All of them, in the order of the official schema.
            pub const ALL: &'static [(Self, &'static str, Value)] = &[$((Self::$variant, $column, Value::$value)),*];
        }
    };
}

/// The SQL type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// BIGINT
    Long,
    /// VARCHAR
    Text,
    /// TIMESTAMP(3)
    Time,
}

columns! {
    /// The fields of `person`.
    PersonField {
        Id = "id": Long, Name = "name": Text, EmailAddress = "emailAddress": Text, CreditCard = "creditCard": Text,
        City = "city": Text, State = "state": Text, DateTime = "dateTime": Time, Extra = "extra": Text,
    }
}
columns! {
    /// The fields of `auction`.
    AuctionField {
        Id = "id": Long, ItemName = "itemName": Text, Description = "description": Text, InitialBid = "initialBid": Long,
        Reserve = "reserve": Long, DateTime = "dateTime": Time, Expires = "expires": Time, Seller = "seller": Long,
        Category = "category": Long, Extra = "extra": Text,
    }
}
columns! {
    /// The fields of `bid`.
    BidField {
        Auction = "auction": Long, Bidder = "bidder": Long, Price = "price": Long, Channel = "channel": Text,
        Url = "url": Text, DateTime = "dateTime": Time, Extra = "extra": Text,
    }
}

/// A field of any kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Of a person.
    Person(PersonField),
    /// Of an auction.
    Auction(AuctionField),
    /// Of a bid.
    Bid(BidField),
}

impl Field {
    /// The field of that name, compared without case, and its type. Some published scripts say `customTime` for `dateTime`, as Flink's
    /// source goes by the order of the fields.
    pub fn named(kind: Kind, name: &str) -> Option<(Self, Value)> {
        let name = if name.eq_ignore_ascii_case("customTime") { "dateTime" } else { name };
        fn find<F: Copy>(all: &[(F, &'static str, Value)], name: &str, wrap: fn(F) -> Field) -> Option<(Field, Value)> {
            all.iter().find(|(_, column, _)| column.eq_ignore_ascii_case(name)).map(|(field, _, value)| (wrap(*field), *value))
        }
        match kind {
            Kind::Person => find(PersonField::ALL, name, Field::Person),
            Kind::Auction => find(AuctionField::ALL, name, Field::Auction),
            Kind::Bid => find(BidField::ALL, name, Field::Bid),
        }
    }

    /// The names of a kind's fields, in order.
    pub fn names(kind: Kind) -> Vec<&'static str> {
        match kind {
            Kind::Person => PersonField::ALL.iter().map(|f| f.1).collect(),
            Kind::Auction => AuctionField::ALL.iter().map(|f| f.1).collect(),
            Kind::Bid => BidField::ALL.iter().map(|f| f.1).collect(),
        }
    }
}

/// Makes columns. Shared by all cores.
#[derive(Debug)]
pub struct Generator {
    shape: Shape,
    text: Text,
    prices: Prices,
}

impl Generator {
    /// A generator of that shape; makes its text, which takes some milliseconds.
    pub fn new(shape: Shape) -> Self {
        Self { text: Text::new(shape.seed), prices: Prices::new(), shape }
    }

    /// The clock and the proportions.
    pub fn timeline(&self) -> &Timeline {
        &self.shape.timeline
    }

    /// The columns `fields`, all of one kind, for the events of `runs`, `rows` in all: BIGINT as `Int64`, VARCHAR as `Utf8View`,
    /// TIMESTAMP(3) in µs.
    pub fn columns(&self, fields: impl Iterator<Item = Field>, runs: &[Run], rows: usize) -> Vec<ArrayRef> {
        let mut made: Vec<(Field, ArrayRef)> = Vec::new();
        for field in fields {
            let column = self.column(field, runs, rows, &made);
            made.push((field, column));
        }
        made.into_iter().map(|(_, column)| column).collect()
    }

    /// One column; `made` are others of the same events, which say how long their texts are.
    fn column(&self, field: Field, runs: &[Run], rows: usize, made: &[(Field, ArrayRef)]) -> ArrayRef {
        match field {
            Field::Person(field) => self.person(field, runs, rows, made),
            Field::Auction(field) => self.auction(field, runs, rows, made),
            Field::Bid(field) => self.bid(field, runs, rows),
        }
    }

    /// Random words of one field: each field has its own, so that leaving one out changes no other.
    fn random(&self, kind: Kind, field: u64) -> RandomStream {
        RandomStream::new(self.shape.seed, kind as u64 * 100 + field)
    }

    fn times(&self, runs: &[Run], rows: usize) -> ArrayRef {
        let mut times = Vec::with_capacity(rows);
        self.shape.timeline.for_each_time_ms(runs, |time_ms| times.push(time_ms * 1000));
        Arc::new(TimestampMicrosecondArray::from(times))
    }

    /// Adds to `used` the lengths of the texts of `field`, which are made if they aren't there yet.
    fn add_lengths(&self, used: &mut [usize], field: Field, runs: &[Run], made: &[(Field, ArrayRef)]) {
        match made.iter().find(|(known, _)| *known == field) {
            Some((_, column)) => add_lengths(used, column),
            None => add_lengths(used, &self.column(field, runs, used.len(), &[])),
        }
    }

    fn person(&self, field: PersonField, runs: &[Run], rows: usize, made: &[(Field, ArrayRef)]) -> ArrayRef {
        let random = self.random(Kind::Person, field as u64);
        match field {
            PersonField::Id => {
                let timeline = &self.shape.timeline;
                ids(runs, rows, |run| timeline.last_person(Kind::Person, run))
            }
            PersonField::Name => Arc::new(self.text.names.take(runs, rows, |n| pick(random, n, self.text.names.len()))),
            PersonField::City => Arc::new(self.text.cities.take(runs, rows, |n| pick(random, n, self.text.cities.len()))),
            PersonField::State => Arc::new(self.text.states.take(runs, rows, |n| pick(random, n, self.text.states.len()))),
            PersonField::EmailAddress => texts(runs, rows, |n, text| {
                Text::push_word(random, n, 7, text);
                text.push('@');
                Text::push_word(self.random(Kind::Person, 50), n, 5, text);
                text.push_str(".com");
            }),
            PersonField::CreditCard => texts(runs, rows, |n, text| {
                let word = random.word(n);
                for group in 0..4 {
                    if group > 0 {
                        text.push(' ');
                    }
                    let digits = below(((word >> (16 * group)) as u32 & 0xffff) << 16, 10_000);
                    text.extend([1000, 100, 10, 1].map(|unit| char::from(b'0' + (digits / unit % 10) as u8)));
                }
            }),
            PersonField::DateTime => self.times(runs, rows),
            PersonField::Extra => {
                let mut used = vec![fixed_bytes(Kind::Person) + 19; rows];
                for field in [PersonField::Name, PersonField::City, PersonField::State, PersonField::EmailAddress] {
                    self.add_lengths(&mut used, Field::Person(field), runs, made);
                }
                self.extra(random, runs, &used, Kind::Person)
            }
        }
    }

    fn auction(&self, field: AuctionField, runs: &[Run], rows: usize, made: &[(Field, ArrayRef)]) -> ArrayRef {
        let random = self.random(Kind::Auction, field as u64);
        let timeline = &self.shape.timeline;
        let initial = self.random(Kind::Auction, AuctionField::InitialBid as u64);
        match field {
            AuctionField::Id => ids(runs, rows, |run| timeline.last_auction(Kind::Auction, run)),
            AuctionField::ItemName => self.words(random, runs, rows, NAME_END),
            AuctionField::Description => self.words(random, runs, rows, DESCRIPTION_END),
            AuctionField::InitialBid => longs(runs, rows, |n| self.prices.price(random.word(n))),
            AuctionField::Reserve => {
                longs(runs, rows, |n| self.prices.price(initial.word(n)) + self.prices.price(random.word(n)))
            }
            AuctionField::DateTime => self.times(runs, rows),
            AuctionField::Expires => {
                // On average as long as it takes until all auctions that are open now have been followed by new ones.
                let [_, auctions, _] = timeline.proportions;
                let ahead = IN_FLIGHT_AUCTIONS as u64 * timeline.round_events() / auctions.max(1);
                Arc::new(TimestampMicrosecondArray::from(each(runs, rows, |n| {
                    let now_ms = timeline.time_ms(n);
                    let horizon_ms = (timeline.time_ms(n + ahead) - now_ms) as u64;
                    (now_ms + 1 + below_wide(random.word(n), (2 * horizon_ms).max(1)) as i64) * 1000
                })))
            }
            AuctionField::Seller => {
                let ratio = self.shape.hot_seller_ratio;
                persons(runs, rows, |run| timeline.last_person(Kind::Auction, run), random, ratio, 0, FIRST_ID)
            }
            AuctionField::Category => longs(runs, rows, |n| FIRST_CATEGORY_ID + below_wide(random.word(n), CATEGORIES) as i64),
            AuctionField::Extra => {
                let mut used = vec![fixed_bytes(Kind::Auction); rows];
                for field in [AuctionField::ItemName, AuctionField::Description] {
                    self.add_lengths(&mut used, Field::Auction(field), runs, made);
                }
                self.extra(random, runs, &used, Kind::Auction)
            }
        }
    }

    fn bid(&self, field: BidField, runs: &[Run], rows: usize) -> ArrayRef {
        let random = self.random(Kind::Bid, field as u64);
        let timeline = &self.shape.timeline;
        // One choice for two columns.
        let channels = self.random(Kind::Bid, BidField::Channel as u64);
        let channel = |n| {
            let word = channels.word(n);
            Text::channel(word & 1 == 0, high(word))
        };
        match field {
            BidField::Auction => {
                let ratio = self.shape.hot_auction_ratio;
                let mut out = Vec::with_capacity(rows);
                for run in runs {
                    let last = timeline.last_auction(Kind::Bid, run);
                    let hot = FIRST_ID + last / HOT_BATCH * HOT_BATCH;
                    let oldest = (last - IN_FLIGHT_AUCTIONS).max(0);
                    let choices = (last - oldest + 1 + ID_LEAD) as u64;
                    out.extend(run.events.clone().map(|n| {
                        let word = random.word(n);
                        let other = FIRST_ID + oldest + below(low(word), choices) as i64;
                        if below(high(word), ratio) > 0 { hot } else { other }
                    }));
                }
                Arc::new(Int64Array::from(out))
            }
            BidField::Bidder => {
                let ratio = self.shape.hot_bidder_ratio;
                persons(runs, rows, |run| timeline.last_person(Kind::Bid, run), random, ratio, 1, FIRST_BIDDER_ID)
            }
            BidField::Price => longs(runs, rows, |n| self.prices.price(random.word(n))),
            BidField::Channel => Arc::new(self.text.channels.take(runs, rows, channel)),
            BidField::Url => Arc::new(self.text.urls.take(runs, rows, channel)),
            BidField::DateTime => self.times(runs, rows),
            BidField::Extra => {
                let size = ExtraSize::new(fixed_bytes(Kind::Bid), self.shape.average_bytes[Kind::Bid as usize]);
                let mut column = PoolViews::new(&self.text.extra, rows);
                for run in runs {
                    for n in run.events.clone() {
                        let (offset, len) = size.cut(random.word(n));
                        column.push(offset, len);
                    }
                }
                Arc::new(column.finish())
            }
        }
    }

    fn words(&self, random: RandomStream, runs: &[Run], rows: usize, end: usize) -> ArrayRef {
        let mut column = PoolViews::new(&self.text.words, rows);
        for n in runs.iter().flat_map(|run| run.events.clone()) {
            let (offset, len) = Text::word_cut(random.word(n), end);
            column.push_trimmed(offset, len);
        }
        Arc::new(column.finish())
    }

    fn extra(&self, random: RandomStream, runs: &[Run], used: &[usize], kind: Kind) -> ArrayRef {
        let average = self.shape.average_bytes[kind as usize];
        let mut column = PoolViews::new(&self.text.extra, used.len());
        for (n, used) in runs.iter().flat_map(|run| run.events.clone()).zip(used) {
            let (offset, len) = ExtraSize::new(*used, average).cut(random.word(n));
            column.push(offset, len);
        }
        Arc::new(column.finish())
    }
}

/// A value for each event, run by run: the inner loops know how long they are.
fn each<T>(runs: &[Run], rows: usize, of: impl Fn(u64) -> T) -> Vec<T> {
    let mut out = Vec::with_capacity(rows);
    for run in runs {
        out.extend(run.events.clone().map(&of));
    }
    out
}

fn longs(runs: &[Run], rows: usize, of: impl Fn(u64) -> i64) -> ArrayRef {
    Arc::new(Int64Array::from(each(runs, rows, of)))
}

/// Ascending ids; `last` says the id, from 0, of a run's first event.
fn ids(runs: &[Run], rows: usize, last: impl Fn(&Run) -> i64) -> ArrayRef {
    let mut out = Vec::with_capacity(rows);
    for run in runs {
        let first = FIRST_ID + last(run);
        out.extend(run.events.clone().map(|n| first + (n - run.events.start) as i64));
    }
    Arc::new(Int64Array::from(out))
}

/// Sellers or bidders: one in `ratio` is any active person, the others are the hot one, `hot_offset` into the newest hundred.
fn persons(
    runs: &[Run],
    rows: usize,
    last: impl Fn(&Run) -> i64,
    random: RandomStream,
    ratio: u64,
    hot_offset: i64,
    first_id: i64,
) -> ArrayRef {
    let mut out = Vec::with_capacity(rows);
    for run in runs {
        let last = last(run);
        let hot = first_id + last / HOT_BATCH * HOT_BATCH + hot_offset;
        let active = (last + 1).min(ACTIVE_PERSONS);
        let oldest = first_id + last + 1 - active;
        let choices = (active + ID_LEAD) as u64;
        out.extend(run.events.clone().map(|n| {
            let word = random.word(n);
            let other = oldest + below(low(word), choices) as i64;
            if below(high(word), ratio) > 0 { hot } else { other }
        }));
    }
    Arc::new(Int64Array::from(out))
}

/// Strings that are written one by one, for rare kinds of event.
fn texts(runs: &[Run], rows: usize, write: impl Fn(u64, &mut String)) -> ArrayRef {
    let mut builder = StringViewBuilder::with_capacity(rows);
    let mut text = String::new();
    for n in runs.iter().flat_map(|run| run.events.clone()) {
        text.clear();
        write(n, &mut text);
        builder.append_value(&text);
    }
    Arc::new(builder.finish())
}

fn pick(random: RandomStream, number: u64, choices: usize) -> usize {
    below_wide(random.word(number), choices as u64) as usize
}

/// Adds to `used[i]` the length of string `i` of `column`, a `Utf8View`.
fn add_lengths(used: &mut [usize], column: &dyn Array) {
    use arrow::array::AsArray;
    for (used, view) in used.iter_mut().zip(column.as_string_view().views()) {
        *used += (view & 0xffff_ffff) as usize;
    }
}

/// Prices: 10^(6u) · 100, rounded, for u uniform in 0..1 in steps of 2⁻²².
#[derive(Debug)]
struct Prices {
    coarse: Box<[f64; Self::STEPS]>,
    fine: Box<[f64; Self::STEPS]>,
}

impl Prices {
    const STEPS: usize = 1 << 11;

    /// Made by multiplication alone, which every machine rounds alike, other than `powf`.
    fn new() -> Self {
        // 10^(6 / 2^11) and 10^(6 / 2^22).
        let powers = |base: f64, first: f64| {
            let mut next = first;
            Box::new(std::array::from_fn(|_| {
                let power = next;
                next *= base;
                power
            }))
        };
        Self { coarse: powers(1.006_768_659_292_722_4, 100.0), fine: powers(1.000_003_293_879_821_6, 1.0) }
    }

    #[inline]
    fn price(&self, word: u64) -> i64 {
        let (coarse, fine) = (high(word) as usize % Self::STEPS, low(word) as usize % Self::STEPS);
        (self.coarse[coarse] * self.fine[fine] + 0.5) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_powers_of_ten_within_rounding() {
        let prices = Prices::new();
        for step in (0..1u64 << 22).step_by(997).chain([0, (1 << 22) - 1]) {
            let word = (step >> 11) << 32 | (step & 0x7ff);
            let exact = 10f64.powf(step as f64 / f64::from(1 << 22) * 6.0) * 100.0;
            assert!((prices.price(word) as f64 - exact).abs() <= 0.501, "u = {step} / 2^22: {} for {exact}", prices.price(word));
        }
        assert_eq!(prices.price(0), 100);
    }
}
