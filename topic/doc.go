// Package topic owns subscriptions and the way of a publication to its
// subscribers: namespaces, the broker's seam, the subscriber lists of each
// loop, and the fan-out that encodes a publication once per wire format and
// posts it once per loop.
//
// Who owns what: the table from names to topics is sharded, each shard under
// its lock. The subscriber list of a topic on a loop belongs to that loop and
// is touched nowhere else. Under a shard's lock the one outside call is the
// non-blocking post to a loop, so that all loops see a topic's publications in
// one order.
package topic
