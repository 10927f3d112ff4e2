package handler

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"sync"

	pb "github.com/centrifugal/protocol"

	"perch/protocol"
	"perch/topic"
)

// The questions of presence that nodes ask one another; their parameter is the
// topic. An answer to presence is a PresenceResult in Protobuf, one to
// presence_stats a tally.
const (
	peerPresence      = "presence"
	peerPresenceStats = "presence_stats"
)

// census is who is subscribed to a topic on all nodes: here, and what others said.
type census struct {
	here   []topic.ClientInfo // shared with others who ask
	others [][]byte
	// size is about what all of it takes.
	size int
}

// reader lets the subscribers of this node be read.
type reader interface {
	Presence(name string, done func([]topic.ClientInfo, error))
}

// takeCensus asks this node and the others at once. done is called once, on any
// goroutine; it does not block.
func takeCensus(here reader, peers Peers, method, name string, done func(*census, error)) {
	c := &census{}
	local := func(all []topic.ClientInfo) {
		c.here = all
		for i := range all {
			c.size += infoWeight(&all[i])
		}
	}
	if peers.Alone() {
		here.Presence(name, func(all []topic.ClientInfo, err error) {
			local(all)
			done(c, err)
		})
		return
	}
	var (
		mu   sync.Mutex
		left = 2
		bad  error
	)
	part := func(set func() error) {
		mu.Lock()
		if err := set(); bad == nil {
			bad = err
		}
		left--
		last := left == 0
		mu.Unlock()
		if !last {
			return
		}
		if bad != nil {
			done(nil, bad)
			return
		}
		done(c, nil)
	}
	peers.Ask(PeerQuestion{Method: method, Params: []byte(name), Shared: true}, func(answers []PeerAnswer, err error) {
		part(func() error {
			for i := range answers {
				c.others = append(c.others, answers[i].Data)
				c.size += len(answers[i].Data)
			}
			return firstPeerError(answers, err)
		})
	})
	here.Presence(name, func(all []topic.ClientInfo, err error) {
		part(func() error {
			local(all)
			return err
		})
	})
}

// list is everybody, each client once.
func (c *census) list() ([]topic.ClientInfo, error) {
	if len(c.others) == 0 {
		return c.here, nil
	}
	var far pb.PresenceResult
	for _, b := range c.others {
		if err := far.UnmarshalCF(b); err != nil {
			return nil, err
		}
	}
	all := slices.Grow(slices.Clone(c.here), len(far.Presence))
	for i := range c.here {
		delete(far.Presence, c.here[i].Client)
	}
	for _, i := range far.Presence {
		all = append(all, topic.ClientInfo{User: i.User, Client: i.Client, ConnInfo: i.ConnInfo, ChanInfo: i.ChanInfo})
	}
	return all, nil
}

// encodePresence is the answer to another node.
func encodePresence(all []topic.ClientInfo) ([]byte, error) {
	r := &pb.PresenceResult{Presence: make(map[string]*pb.ClientInfo, len(all))}
	for i := range all {
		r.Presence[all[i].Client] = clientInfo(&all[i], protocol.Protobuf)
	}
	return r.MarshalCF()
}

// stats counts clients and users, each once.
func (c *census) stats() (clients, users int, err error) {
	if len(c.others) == 0 {
		clients, users = presenceStats(c.here)
		return clients, users, nil
	}
	all := []tally{tallyOf(c.here)}
	for _, b := range c.others {
		t, err := decodeTally(b)
		if err != nil {
			return 0, 0, err
		}
		all = append(all, t)
	}
	return union(all, func(t *tally) *sketch { return &t.clients }), union(all, func(t *tally) *sketch { return &t.users }), nil
}

// sketchMost is how many hashes of a set a node sends: up to as many its union
// with others is exact, beyond it is estimated, with a standard error of about
// 1/√sketchMost, under one percent.
const sketchMost = 16384

// sketch is a set of names of which the smallest hashes are known (Bar-Yossef and
// others, "Counting distinct elements in a data stream", 2002).
type sketch struct {
	count  int      // all
	hashes []uint64 // the smallest of them, sorted, each once
}

// tally is what a node says of who is subscribed to a topic.
type tally struct{ clients, users sketch }

func tallyOf(all []topic.ClientInfo) tally {
	return tally{
		clients: sketchOf(all, func(i *topic.ClientInfo) string { return i.Client }),
		users:   sketchOf(all, func(i *topic.ClientInfo) string { return i.User }),
	}
}

func sketchOf(all []topic.ClientInfo, name func(*topic.ClientInfo) string) sketch {
	h := make([]uint64, len(all))
	for i := range all {
		h[i] = spread(TokenHash(name(&all[i])))
	}
	slices.Sort(h)
	h = slices.Compact(h)
	return sketch{len(h), h[:min(len(h), sketchMost)]}
}

// union is how many are in one set or the other.
func union(all []tally, of func(*tally) *sketch) int {
	var h []uint64
	most, sum, whole := 0, 0, true
	for i := range all {
		s := of(&all[i])
		h = append(h, s.hashes...)
		most, sum = max(most, s.count), sum+s.count
		whole = whole && s.count == len(s.hashes)
	}
	slices.Sort(h)
	h = slices.Compact(h)
	if whole {
		return len(h)
	}
	// One set has more than sketchMost, so the union has at least as many hashes.
	k := min(len(h), sketchMost)
	if k < 2 {
		return most
	}
	estimate := float64(k-1) / (float64(h[k-1]) / math.MaxUint64)
	return min(max(int(estimate), most), sum)
}

var errTally = errors.New("handler: tally of a node not understood")

func (t *tally) encode() []byte {
	b := make([]byte, 0, 4*binary.MaxVarintLen32+8*(len(t.clients.hashes)+len(t.users.hashes)))
	for _, s := range []*sketch{&t.clients, &t.users} {
		b = binary.AppendUvarint(b, uint64(s.count))
		b = binary.AppendUvarint(b, uint64(len(s.hashes)))
		for _, h := range s.hashes {
			b = binary.LittleEndian.AppendUint64(b, h)
		}
	}
	return b
}

func decodeTally(b []byte) (t tally, err error) {
	for _, s := range []*sketch{&t.clients, &t.users} {
		count, n := binary.Uvarint(b)
		if n <= 0 || count > math.MaxInt32 {
			return tally{}, errTally
		}
		b = b[n:]
		k, n := binary.Uvarint(b)
		if n <= 0 || k > sketchMost || k > count || uint64(len(b)-n) < 8*k || k < count && k < sketchMost {
			return tally{}, errTally
		}
		b = b[n:]
		s.count, s.hashes = int(count), make([]uint64, k)
		for i := range s.hashes {
			s.hashes[i] = binary.LittleEndian.Uint64(b[8*i:])
		}
		b = b[8*k:]
	}
	if len(b) > 0 {
		return tally{}, errTally
	}
	return t, nil
}
