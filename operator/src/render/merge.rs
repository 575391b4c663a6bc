//! Lays a user's PodTemplateSpec over the operator's.

use serde_json::{Map, Value};

/// How deep a template may be nested; deeper parts are taken as they are.
const DEPTH_MAX: usize = 32;

/// `over` laid on `base`: maps by key, lists whose items all have a `name` by that name, every other value replaced; `null` removes.
///
/// Items of named lists keep the order of `base`, new ones follow in the order of `over`; an empty list over a named one adds nothing.
#[must_use]
pub fn merge(base: Value, over: &Value) -> Value {
    merge_to(base, over, 0)
}

fn merge_to(base: Value, over: &Value, depth: usize) -> Value {
    if depth == DEPTH_MAX {
        return over.clone();
    }
    match (base, over) {
        (Value::Object(mut map), Value::Object(changes)) => {
            for (key, change) in changes {
                if change.is_null() {
                    map.remove(key);
                } else {
                    let old = map.remove(key).unwrap_or(Value::Null);
                    map.insert(key.clone(), merge_to(old, change, depth + 1));
                }
            }
            Value::Object(map)
        }
        (Value::Array(items), Value::Array(changes)) if is_named(&items) && (is_named(changes) || changes.is_empty()) => {
            let mut items = items;
            for change in changes {
                let name = &change["name"];
                match items.iter_mut().find(|item| item["name"] == *name) {
                    Some(item) => *item = merge_to(item.take(), change, depth + 1),
                    None => items.push(change.clone()),
                }
            }
            Value::Array(items)
        }
        (Value::Null, Value::Object(changes)) => merge_to(Value::Object(Map::new()), &Value::Object(changes.clone()), depth),
        (_, over) => over.clone(),
    }
}

fn is_named(items: &[Value]) -> bool {
    !items.is_empty() && items.iter().all(|item| item["name"].is_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use serde_json::json;

    use super::*;

    #[test]
    fn maps_merge_by_key_and_lists_by_name() {
        let base = json!({"a": 1, "list": [{"name": "x", "v": 1}, {"name": "y"}], "plain": [1, 2], "gone": true});
        let over = json!({"b": {"c": null, "d": 2}, "list": [{"name": "z"}, {"name": "x", "w": 2}], "plain": [3], "gone": null});
        assert_eq!(
            merge(base, &over),
            json!({"a": 1, "b": {"d": 2}, "list": [{"name": "x", "v": 1, "w": 2}, {"name": "y"}, {"name": "z"}], "plain": [3]})
        );
    }

    #[test]
    fn an_empty_list_takes_nothing_away() {
        let base = json!({"env": [{"name": "A"}], "plain": [1]});
        assert_eq!(merge(base, &json!({"env": [], "plain": []})), json!({"env": [{"name": "A"}], "plain": []}));
    }

    #[test]
    fn nothing_changes_nothing() {
        let base = json!({"a": [{"name": "x"}], "b": {"c": [1]}});
        assert_eq!(merge(base.clone(), &json!({})), base);
        assert_eq!(merge(base.clone(), &base), base);
    }

    #[test]
    fn a_deep_template_does_not_end_the_stack() {
        let mut deep = json!(1);
        for _ in 0..120 {
            deep = json!({"a": deep});
        }
        let _merged = merge(deep.clone(), &deep);
    }
}
