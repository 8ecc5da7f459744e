"""Who is to have a member, and who restores a lost cluster: the rules that every node of a pool follows by itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward_etcd.plugin.roster import (
    Seat,
    Word,
    is_dead,
    is_heir,
    is_restorer,
    is_to_be_buried,
    joins,
    leavers,
    leaves,
    survivors,
    wanted,
)

A, B, C, D, E = PEERS = ("a", "b", "c", "d", "e")


def seats(*hosts: str) -> list[Seat]:
    return [Seat(f"m-{host}", host) for host in hosts]


def words(*hosts: str, members: Sequence[str] = PEERS) -> dict[str, Word]:
    return {host: Word(host, f"m-{host}" if host in members else "") for host in hosts}


@pytest.mark.parametrize(
    ("nodes", "fixed", "members"),
    [
        (0, None, 1),
        (1, None, 1),
        (2, None, 1),
        (3, None, 3),
        (6, None, 3),
        (7, None, 5),
        (50, None, 5),
        (50, 3, 3),
        (3, 5, 3),
        (2, 3, 1),
        (4, 5, 3),
    ],
)
def test_as_many_members_as_the_pool_has_room_for(nodes: int, fixed: int | None, members: int) -> None:
    assert wanted(nodes, fixed) == members


def test_the_next_member_goes_to_the_lowest_rank_without_one_that_is_up() -> None:
    everybody = set(PEERS)
    assert [host for host in PEERS if joins(host, PEERS, seats(D), 3, everybody.__contains__)] == [A]
    assert [host for host in PEERS if joins(host, PEERS, seats(A, D), 3, everybody.__contains__)] == [B]
    assert [host for host in PEERS if joins(host, PEERS, seats(A, D), 3, {C, E}.__contains__)] == [B, C]
    assert [host for host in PEERS if joins(host, PEERS, seats(A, B, C), 3, everybody.__contains__)] == []
    assert not joins("x", PEERS, seats(A), 3, everybody.__contains__), "it is no longer one of the pool's"


def test_the_lowest_node_joins_where_all_seats_are_taken_and_the_highest_leaves() -> None:
    """Skyward takes it away last."""
    everybody = set(PEERS)
    assert [host for host in PEERS if joins(host, PEERS, seats(B), 1, everybody.__contains__)] == [A]
    assert [host for host in PEERS if joins(host, PEERS, seats(D, B, C), 3, everybody.__contains__)] == [A]
    assert [host for host in PEERS if leaves(host, PEERS, seats(D, B, C, A), 3)] == [D]
    assert not joins(A, PEERS, seats(B, C, D, E), 3, everybody.__contains__), "there is one too many already"


def test_members_that_are_about_to_go_take_nobodys_seat_where_they_are_most_of_them() -> None:
    left = (D, E)
    assert [host for host in left if joins(host, left, seats(A, B, C), 1, {D, E}.__contains__)] == [D]
    assert [host for host in left if joins(host, left, seats(A, B, C, D), 1, {D, E}.__contains__)] == []
    most = (B, C, E)
    assert [host for host in most if joins(host, most, seats(A, B, C), 3, {E}.__contains__)] == [], "A is buried first"


def test_the_lowest_nodes_copy_the_data_where_no_voter_stays() -> None:
    assert [host for host in PEERS if is_heir(host, seats(A, B, C), (D, E))] == [D, E]
    assert [host for host in PEERS if is_heir(host, seats(E), (A, B, C, D))] == [A, B, C], "three are enough"
    assert [host for host in PEERS if is_heir(host, [*seats(A), Seat("m-d", D, votes=False)], (D, E))] == [D, E]
    assert [host for host in PEERS if is_heir(host, seats(A, B, E), (D, E))] == [], "E has everything"
    assert [host for host in PEERS if is_heir(host, [], (D, E))] == []
    assert not is_heir(A, seats(B), ()), "nobody knows the nodes"
    assert leavers(seats(A, D, B), (D, E)) == seats(A, B)


def test_who_has_the_newest_data_restores_where_no_voter_survives_for_certain() -> None:
    heard = {D: Word(D, "m-d"), E: Word(E, "", 7)}
    assert [host for host in heard if is_restorer(host, seats(A, B, C), (D, E), heard)] == [E], "D's may lack data"
    heard = {D: Word(D, "", 8), E: Word(E, "", 7)}
    assert [host for host in heard if is_restorer(host, seats(A, B, C), (D, E), heard)] == [D]
    heard = {D: Word(D, "", 8), E: Word(E, "m-e", 8)}
    assert [host for host in heard if is_restorer(host, seats(A, B, C), (D, E), heard)] == [E], "D has copied it there"
    heard = {D: Word(D, "", 8), E: Word(E, "m-e")}
    assert [host for host in heard if is_restorer(host, seats(A, B, E), (D, E), heard)] == [E], "it has everything"


def test_one_too_many_leaves_from_the_highest_rank_and_from_outside_first() -> None:
    assert [host for host in PEERS if leaves(host, PEERS, seats(E, A, B), 1)] == [E]
    assert [host for host in PEERS if leaves(host, PEERS, seats(A, B), 1)] == [B]
    assert not any(leaves(host, PEERS, seats(A), 1) for host in PEERS)
    assert leaves("x", PEERS, [*seats(A), Seat("m-x", "x")], 1)


def test_a_member_is_dead_by_word_and_never_by_silence() -> None:
    seat = Seat("m-b", B)
    assert not is_dead(seat, PEERS, {})
    assert not is_dead(seat, PEERS, words(B))
    assert is_dead(seat, PEERS, words(B, members=()))
    assert is_dead(seat, PEERS, {B: Word("another", "m-another")}), "a replacement has its address"
    assert is_dead(seat, (A, C), words(B)), "the pool is without it"


def test_a_member_that_is_dead_is_buried_at_once_and_one_that_refuses_after_five_seconds() -> None:
    seat, alive, dead = Seat("m-b", B), words(B), words(B, members=())
    assert is_to_be_buried(seat, PEERS, dead, 0.0, is_mute=False)
    assert not is_to_be_buried(seat, PEERS, alive, 4.9, is_mute=False)
    assert is_to_be_buried(seat, PEERS, alive, 5.1, is_mute=False)


@pytest.mark.parametrize("peers", [PEERS, (A, C)])
def test_a_member_of_which_nothing_is_heard_is_not_buried_before_the_others_streams_to_it(peers: Sequence[str]) -> None:
    """Even where it is known to be dead: etcd would do nothing else until then."""
    seat = Seat("m-b", B)
    assert not is_to_be_buried(seat, peers, {}, 14.9, is_mute=True)
    assert is_to_be_buried(seat, peers, {}, 15.1, is_mute=True)


def restorers(votes: Sequence[Seat], peers: Sequence[str], *heard: str, members: Sequence[str] = PEERS) -> list[str]:
    return [host for host in heard if is_restorer(host, votes, peers, words(*heard, members=members))]


def test_the_lowest_surviving_voter_restores_when_the_pool_is_without_the_others() -> None:
    assert restorers(seats(A, B, C), (A,), A) == [A]
    assert restorers(seats(E, A, B), (B, C), B, C) == [B]
    assert restorers(seats(A, B, C, D, E), (B, D), B, D) == [B]


def test_of_two_voters_the_other_one_restores_with_most_of_the_nodes() -> None:
    """While a cluster grows from one to three, either of two voters takes the quorum with it."""
    assert restorers(seats(A, B), (A, B, C), B, C) == [B]
    assert restorers(seats(A, B), (A, B, C), A) == [], "it is the one that was cut off"
    assert restorers(seats(A, B), (A, B), B) == []


def test_nobody_restores_while_those_who_are_silent_could_go_on() -> None:
    assert restorers(seats(A, B, C), PEERS, C, D, E) == []
    assert restorers(seats(A, B, C), (B, C, D, E), C, D, E) == [C], "one is dead, one silent: these two are no majority"


def test_nobody_restores_what_is_not_lost() -> None:
    assert restorers(seats(A, B, C), PEERS, A, B) == []
    assert restorers(seats(A), PEERS, A, B, C) == []


def test_where_no_voter_survives_the_lowest_node_begins_anew_once_that_is_certain() -> None:
    assert restorers(seats(A), (B, C), B, C) == [B]
    assert restorers(seats(A), (A, B, C), A, B, C, members=()) == [A]
    assert restorers(seats(A), (A, B, C), B, C) == [], "it may come back"


def test_who_had_no_vote_yet_when_the_quorum_was_last_heard_is_not_forgotten() -> None:
    """It may have got one since: then it is half of two, and has all the data."""
    opener, fellow = seats(C)[0], Seat("m-b", B, votes=False)
    assert restorers([opener, fellow], (A, B), A, B, members=(B,)) == [B]
    assert survivors([opener, fellow], (A, B), words(A, B, members=(B,))) == [fellow]
    assert survivors([opener, fellow], (A, B, C), words(A, B, C, members=(B, C))) == [opener], "there is a voter"


def test_nor_is_a_member_that_nobody_had_heard_of() -> None:
    assert restorers(seats(C), (A, B), A, B, members=(B,)) == [B], "and not A, with nothing"
    assert survivors(seats(C), (A, B), words(A, B, members=(B,))) == [Seat("m-b", B, votes=False)]


@given(st.data())
def test_two_sides_of_a_cut_never_both_restore(data: st.DataObject) -> None:
    peers = PEERS[: data.draw(st.integers(1, 5))]
    votes = seats(*data.draw(st.lists(st.sampled_from(peers), unique=True, min_size=1)))
    here = data.draw(st.sets(st.sampled_from(peers)))
    there = set(peers) - here
    assert not (restorers(votes, peers, *sorted(here)) and restorers(votes, peers, *sorted(there)))


@given(st.data())
def test_who_restores_is_one_and_has_no_majority_against_it(data: st.DataObject) -> None:
    votes = seats(*data.draw(st.lists(st.sampled_from(PEERS), unique=True, min_size=1)))
    heard = sorted(data.draw(st.sets(st.sampled_from(PEERS))))
    peers = [peer for peer in PEERS if peer in heard or data.draw(st.booleans())]
    chosen = restorers(votes, peers, *heard)
    assert len(chosen) <= 1
    if chosen:
        silent = [seat for seat in votes if seat.host in peers and seat.host not in heard]
        assert 2 * len(silent) <= len(votes)
        assert 2 * sum(seat.votes for seat in survivors(votes, peers, words(*heard))) <= len(votes)
