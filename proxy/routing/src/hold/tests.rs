use super::*;
use crate::random::Random;

fn held(bytes: u64, service_s: f64) -> Held {
    Held {
        chain: vec![bytes; 3],
        run_bytes: 512,
        prompt_bytes: bytes,
        media: 0,
        session: None,
        streamed: true,
        exclude: Vec::new(),
        arrived: Now::ZERO,
        needs: needs(service_s),
        matched: 0,
        coming: 0,
        announced: false,
        runner_up: None,
        candidates: 2,
    }
}

fn needs(service_s: f64) -> Needed {
    Needed { service_s, ..Needed::default() }
}

fn at(seconds: f64) -> Now {
    Now::from_secs_f64(seconds)
}

#[test]
fn the_earliest_due_is_first_and_equals_keep_their_order() {
    let mut holds = Holds::default();
    let late = holds.insert(held(1, 1.0), 0, at(9.0));
    let first = holds.insert(held(1, 2.0), 0, at(5.0));
    let second = holds.insert(held(1, 4.0), 0, at(5.0));
    let order: Vec<HoldId> = holds.at(0).map(|(key, _)| key.id).collect();
    assert_eq!(order, [first, second, late]);
    assert_eq!((holds.ahead_s(0, at(5.0)), holds.ahead_s(0, at(4.9))), (6.0, 0.0));
    holds.put(first, 0, at(5.0), needs(2.0));
    assert_eq!(holds.first_at(0).unwrap().id, first, "a second look at the same place changes nothing");
    holds.put(first, 1, at(5.0), needs(2.0));
    assert_eq!((holds.len_at(0), holds.len_at(1)), (2, 1));
}

#[test]
fn an_id_of_a_request_that_is_gone_names_nobody() {
    let mut holds = Holds::default();
    let gone = holds.insert(held(7, 1.0), 0, at(1.0));
    assert!(holds.remove(gone).is_some());
    let next = holds.insert(held(8, 1.0), 0, at(1.0));
    assert_eq!(gone.slot, next.slot);
    holds.put(gone, 3, at(0.0), needs(1.0));
    assert!(holds.remove(gone).is_none() && holds.get(gone).is_none());
    assert_eq!(holds.get(next).unwrap().prompt_bytes, 8);
}

/// Against a plain list, over random operations; afterwards nothing is left.
#[test]
fn it_agrees_with_a_list_and_leaves_nothing_behind() {
    let mut random = Random::new(7);
    let mut holds = Holds::default();
    let mut list: Vec<(HoldId, Option<u32>, f64, u64)> = Vec::new();
    for step in 0..20_000_u64 {
        match random.below(6) {
            0..=2 => {
                let (endpoint, due) = (random.below(4) as u32, random.below(50) as f64);
                let id = holds.insert(held(step, 1.0), endpoint, at(due));
                list.push((id, Some(endpoint), due, step));
            }
            3 if !list.is_empty() => {
                let (id, ..) = list.swap_remove(random.below(list.len()));
                assert!(holds.remove(id).is_some());
            }
            4 if !list.is_empty() => {
                let pick = random.below(list.len());
                let (endpoint, due) = (random.below(4) as u32, random.below(50) as f64);
                holds.put(list[pick].0, endpoint, at(due), needs(1.0));
                (list[pick].1, list[pick].2) = (Some(endpoint), due);
            }
            5 if step % 40 == 0 => {
                holds.evict(2);
                list.iter_mut().filter(|entry| entry.1 == Some(2)).for_each(|entry| entry.1 = None);
            }
            _ => {}
        }
        assert_eq!(holds.len(), list.len());
        assert_eq!(holds.prompt_bytes(), list.iter().map(|entry| entry.3).sum::<u64>());
        assert_eq!(holds.homeless().is_some(), list.iter().any(|entry| entry.1.is_none()));
        for endpoint in 0..4 {
            let here = list.iter().filter(|entry| entry.1 == Some(endpoint));
            assert_eq!(holds.len_at(endpoint), here.clone().count());
            let least = here.map(|entry| entry.2).reduce(f64::min);
            assert_eq!(holds.first_at(endpoint).map(|key| key.due.as_secs_f64()), least);
        }
    }
    for (id, ..) in list {
        assert!(holds.remove(id).is_some());
    }
    assert_eq!((holds.len(), holds.prompt_bytes(), holds.chain_bytes()), (0, 0, 0));
    assert!(holds.homeless().is_none() && holds.waited_for().next().is_none());
}
