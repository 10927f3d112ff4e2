package topic

import (
	"time"

	"perch/session"
)

const (
	// newsBatch is how many are told of at once, and newsMost how many may wait for
	// it; beyond that they are counted and dropped.
	newsBatch = 1024
	newsBytes = 256 << 10 // of a batch, but for one that is longer by itself
	newsMost  = 8 * newsBatch
	newsLimit = 16 * newsBytes // of those that wait
)

// News is that somebody has come, or left.
type News struct {
	Left   bool
	Client ClientInfo
}

// JoinEncoder turns news of a topic into the bytes that go to a subscriber's
// wire, framing included. The result is shared. Safe from any goroutine.
type JoinEncoder func(topic string, news []News) ([]byte, error)

// JoinEncoders is the table of them; a nil one tells nothing.
type JoinEncoders [session.EncodingCount]JoinEncoder

func newsWeight(all []News) int {
	n := 0
	for i := range all {
		n += 64 + all[i].Client.weight()
	}
	return n
}

// news is what is to be told of a topic. It exists from the first until an
// interval has brought nothing, under the shard's lock.
type news struct {
	waiting []News
	bytes   int            // of waiting
	of      map[string]int // the place in waiting, by client
	timer   *time.Timer
}

// Join tells the subscribers of a topic that s has come, where its subscription
// has SubscribeOptions.Told; that it leaves is told by itself. Runs on the loop
// of s.
func (t *Topics) Join(s *session.Session, name string) {
	sub := memberOf(s).find(name)
	if sub == nil || sub.track == nil || !sub.track.is(trackTold) || sub.track.is(trackJoined) {
		return
	}
	sub.track.flags |= trackJoined
	t.tell(sub.list.topic, News{Client: t.clientInfo(s, sub.track)})
}

// tell lets the subscribers of a topic know. The first news go at once; what
// follows within the interval goes together, and who came and left again within
// it is not told of.
func (t *Topics) tell(tp *Topic, n News) {
	sh := t.shard(tp.name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.topics[tp.name] != tp {
		t.tellOthers(tp.name, []News{n}) // nobody is there on this node
		return
	}
	r := tp.needLocked()
	w := r.news
	if w == nil {
		r.news = &news{}
		r.news.timer = time.AfterFunc(t.opts.JoinLeaveInterval, func() { t.tellWaiting(tp) })
		t.postNewsLocked(tp, []News{n})
		return
	}
	if i, there := w.of[n.Client.Client]; there && w.waiting[i].Left != n.Left {
		delete(w.of, n.Client.Client)
		w.bytes -= newsWeight(w.waiting[i : i+1])
		last := len(w.waiting) - 1
		if i != last {
			w.waiting[i] = w.waiting[last]
			w.of[w.waiting[i].Client.Client] = i
		}
		w.waiting[last] = News{}
		w.waiting = w.waiting[:last]
		return
	}
	size := newsWeight([]News{n})
	if len(w.waiting) >= newsMost || w.bytes+size > newsLimit && len(w.waiting) > 0 {
		t.newsDropped.Add(1)
		return
	}
	if w.of == nil {
		w.of = make(map[string]int)
	}
	w.of[n.Client.Client] = len(w.waiting)
	w.waiting = append(w.waiting, n)
	w.bytes += size
}

// tellWaiting runs on a goroutine of the timer's.
func (t *Topics) tellWaiting(tp *Topic) {
	sh := t.shard(tp.name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r := tp.needLocked()
	w := r.news
	if w == nil {
		return
	}
	if len(w.waiting) == 0 || sh.topics[tp.name] != tp {
		r.news = nil
		return
	}
	n, size := 0, 0
	for n < min(len(w.waiting), newsBatch) && (n == 0 || size+newsWeight(w.waiting[n:n+1]) <= newsBytes) {
		size += newsWeight(w.waiting[n : n+1])
		n++
	}
	batch := w.waiting[:n:n]
	// What is left has an array of its own: the batch lives as long as it is sent.
	*w = news{waiting: append([]News(nil), w.waiting[n:]...), bytes: w.bytes - size, timer: w.timer}
	if len(w.waiting) > 0 {
		w.of = make(map[string]int, len(w.waiting))
		for i := range w.waiting {
			w.of[w.waiting[i].Client.Client] = i
		}
	}
	t.postNewsLocked(tp, batch)
	w.timer.Reset(t.opts.JoinLeaveInterval)
}

// postNewsLocked tells those of this node and of the others.
func (t *Topics) postNewsLocked(tp *Topic, batch []News) {
	t.tellOthers(tp.name, batch)
	t.postLocked(tp, batch)
}

func (t *Topics) tellOthers(name string, batch []News) {
	if t.opts.Told != nil {
		t.opts.Told(name, batch)
	}
}

// TellRemote tells the subscribers of this node what another has gathered; nobody
// changes the news any more. Safe from any goroutine.
func (t *Topics) TellRemote(name string, batch []News) {
	sh := t.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if tp := sh.topics[name]; tp != nil {
		t.postLocked(tp, batch)
	}
}

func (t *Topics) postLocked(tp *Topic, batch []News) {
	d := &delivery{name: tp.name, topics: t, news: batch}
	if !tp.reserveLocked(d.room()) {
		t.newsDropped.Add(uint64(len(batch)))
		return
	}
	for l := range tp.activeLocked() {
		l.postLocked(d)
	}
}

// forgetNewsLocked is for a topic that nobody is subscribed to any more: what
// waits is of interest to other nodes alone.
func (t *Topics) forgetNewsLocked(tp *Topic) {
	r := tp.rare
	if r == nil || r.news == nil {
		return
	}
	r.news.timer.Stop()
	if len(r.news.waiting) > 0 {
		t.tellOthers(tp.name, r.news.waiting)
	}
	r.news = nil
}
