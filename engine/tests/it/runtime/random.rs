//! Random dataflows over random changes give the same result on any number of cores, however epochs are cut: that of a naive model.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tiderace_engine::connect::{ChangelogMode, Ring};
use tiderace_engine::ids::NodeId;
use tiderace_engine::runtime::graph::{Input, Role, Route};
use tiderace_engine::runtime::{Job, JobOptions};

use super::support::{Build, Collect, Map, Pair, Script, SumByKey, ZSet, add, ended, pair_schema, pairs, seeded};

const MAPS: [fn(Pair) -> Option<Pair>; 4] = [
    |(k, v)| Some((v.rem_euclid(5), k)),
    |(k, v)| (v.rem_euclid(3) != 0).then_some((k, v)),
    |(k, v)| Some((k.rem_euclid(2), v + 1)),
    |(k, v)| (k.rem_euclid(4) == 1).then_some((k, v.wrapping_mul(3))),
];

#[derive(Clone, Debug)]
enum Step {
    Map(usize, usize),
    Sum(usize),
    Union(usize, usize),
}

#[derive(Clone, Debug)]
struct Flow {
    sources: Vec<Vec<Vec<Vec<(Pair, i64)>>>>, // source, split, batch, row
    io: bool,
    steps: Vec<(Step, u8)>,
}

fn flows() -> impl Strategy<Value = Flow> {
    let row = ((0..12i64, -4..5i64), prop_oneof![4 => Just(1i64), 2 => Just(-1i64), 1 => Just(2i64)]);
    let batch = prop::collection::vec(row, 1..6);
    let split = prop::collection::vec(batch, 0..12);
    let source = prop::collection::vec(split, 0..4);
    let which = any::<usize>;
    let step = prop_oneof![
        (which(), which()).prop_map(|(map, from)| Step::Map(map, from)),
        which().prop_map(Step::Sum),
        (which(), which()).prop_map(|(a, b)| Step::Union(a, b)),
    ];
    (prop::collection::vec(source, 1..3), proptest::bool::ANY, prop::collection::vec((step, any::<u8>()), 1..6))
        .prop_map(|(sources, io, steps)| Flow { sources, io, steps })
}

/// What each node holds in the end, all rows at once.
fn model(flow: &Flow) -> Vec<ZSet> {
    let mut nodes: Vec<ZSet> = Vec::new();
    for source in &flow.sources {
        let mut set = ZSet::new();
        source.iter().flatten().flatten().for_each(|(pair, weight)| add(&mut set, *pair, *weight));
        nodes.push(set);
    }
    for (step, _) in &flow.steps {
        let n = nodes.len();
        let mut set = ZSet::new();
        match step {
            Step::Map(map, from) => {
                for (pair, weight) in &nodes[from % n] {
                    if let Some(pair) = MAPS[map % MAPS.len()](*pair) {
                        add(&mut set, pair, *weight);
                    }
                }
            }
            Step::Sum(from) => {
                let mut groups: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
                for ((k, v), weight) in &nodes[from % n] {
                    let group = groups.entry(*k).or_default();
                    *group = (group.0 + weight, group.1 + v * weight);
                }
                groups.iter().filter(|(_, (n, _))| *n != 0).for_each(|(k, (_, sum))| add(&mut set, (*k, *sum), 1));
            }
            Step::Union(a, b) => {
                for from in [a, b] {
                    nodes[from % n].iter().for_each(|(pair, weight)| add(&mut set, *pair, *weight));
                }
            }
        }
        nodes.push(set);
    }
    nodes
}

fn run(flow: &Flow, cores: usize, seed: u64) -> Result<Vec<ZSet>, String> {
    let ring = if flow.io { Ring::Io } else { Ring::Core };
    let mut build = Build::default();
    let mut ids: Vec<NodeId> = Vec::new();
    for (i, source) in flow.sources.iter().enumerate() {
        let splits = source.iter().map(|split| split.iter().map(|rows| pairs(rows)).collect()).collect();
        ids.push(build.source(&format!("source {i}"), Script { ring, ..Script::new(splits) }, None));
    }
    for (i, (step, way)) in flow.steps.iter().enumerate() {
        let n = ids.len();
        let routes = [Route::Local, Route::Hash(vec![0]), Route::Hash(vec![1, 0]), Route::Single];
        let input = |from: &usize, way: u8| Input { from: ids[from % n], port: 0, route: routes[way as usize % 4].clone() };
        let name = format!("step {i}");
        let id = match step {
            Step::Map(map, from) => {
                let map = MAPS[map % MAPS.len()];
                build.operator(&name, vec![input(from, *way)], move |_| Map(map))
            }
            Step::Sum(from) => {
                build.operator(&name, vec![input(from, if way % 2 == 0 { 1 } else { 3 })], |_| SumByKey::default())
            }
            Step::Union(a, b) => build.node(&name, Role::Union, vec![input(a, *way), input(b, way / 4)], pair_schema()),
        };
        ids.push(id);
    }
    let mut sinks = Vec::new();
    for (i, id) in ids.iter().enumerate() {
        let sink = Collect::new(if i % 2 == 0 { ring } else { Ring::Core });
        build.sink(&format!("sink {i}"), *id, &sink, ChangelogMode::Retract, vec![]);
        sinks.push(sink);
    }
    let edge_bytes_max = if seed.is_multiple_of(2) { 4 << 20 } else { 2_000 };
    ended(&Job::start(build.graph, JobOptions { edge_bytes_max, ..seeded(cores, seed) })).map_err(|e| e.to_string())?;
    Ok(sinks.iter().map(Collect::state).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn results_depend_on_the_rows_alone(flow in flows(), seed in any::<u64>()) {
        let expected = model(&flow);
        for cores in [1, 2, 7] {
            let found = run(&flow, cores, seed).map_err(TestCaseError::fail)?;
            prop_assert_eq!(&found, &expected, "{} cores", cores);
        }
    }
}
