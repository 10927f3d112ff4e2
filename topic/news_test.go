package topic

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"perch/session"
)

// plainJoined writes news as clients, each behind '+' or '-'.
func plainJoined() JoinEncoders {
	plain := func(_ string, news []News) ([]byte, error) {
		var out []byte
		for _, n := range news {
			sign := "+"
			if n.Left {
				sign = "-"
			}
			out = append(append(out, sign...), n.Client.Client...)
		}
		return append(out, ';'), nil
	}
	return JoinEncoders{session.EncodingJSON: plain, session.EncodingProtobuf: plain}
}

const newsInterval = 200 * time.Millisecond

// newsRig has one who is told of everything, and tells of nobody.
type newsRig struct {
	*Topics
	t     *testing.T
	loops []*fakeLoop
	peers map[string]*fakePeer
	all   *fakePeer
}

func newNewsRig(t *testing.T, o Options) *newsRig {
	o.Joined, o.JoinLeaveInterval = plainJoined(), newsInterval
	r := &newsRig{Topics: newTopics(t, o), t: t, peers: make(map[string]*fakePeer)}
	r.loops = []*fakeLoop{newFakeLoop(t, 0), newFakeLoop(t, 1)}
	r.all = newFakePeer(r.Topics, r.loops[0], session.EncodingJSON)
	if err := r.Subscribe(&r.all.s, "a", SubscribeOptions{News: true}); err != nil {
		t.Fatal(err)
	}
	return r
}

// join lets a client come, whose loop its name decides.
func (r *newsRig) join(client string) {
	p := newFakePeer(r.Topics, r.loops[len(client)%2], session.EncodingJSON)
	p.s.Extra = &session.Extra{Client: client}
	if err := r.Subscribe(&p.s, "a", SubscribeOptions{Told: true}); err != nil {
		r.t.Fatal(err)
	}
	r.Join(&p.s, "a")
	r.peers[client] = p
}

func (r *newsRig) leave(client string) { r.Unsubscribe(&r.peers[client].s, "a") }

func (r *newsRig) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
	for _, l := range r.loops {
		l.drain()
	}
}

// told is what the one who is told of everything got since it was asked.
func (r *newsRig) told() string {
	out := r.all.text()
	r.all.frames = nil
	return out
}

func TestNews(t *testing.T) {
	const short = newsInterval / 10
	for _, tt := range []struct {
		name  string
		steps string // +x -x: comes, goes; a dot: a tenth of the interval passes; '/': what has been told is compared
		want  string
	}{
		{"the first at once", "+x ./", "+x;"},
		{"what follows goes together", "+x +y +z ./..........", "+x;/+y+z;"},
		{"and what follows that", "+x +y .......... +z ./..........", "+x;|+y;/+z;"},
		{"after a quiet interval at once again", "+x .......... . +y ./", "+x;|+y;"},
		{"comes and goes within it", "+x +y -y ..........", "+x;"},
		{"goes and comes within it", "+x .......... . +y -x +x ..........", "+x;|+y;"},
		{"comes, goes, comes", "+x +y -y +y ..........", "+x;|+y;"},
		{"the first goes again", "+x -x ..........", "+x;|-x;"},
		{"one of several goes", "+x +y +z +w -y ..........", "+x;|+w+z;"},
		{"two of several go", "+x +y +z +w -y -w ..........", "+x;|+z;"},
		{"across an interval", "+x +y .......... -y ..........", "+x;|+y;|-y;"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newNewsRig(t, Options{})
				var got []string
				for _, c := range strings.Fields(strings.ReplaceAll(strings.ReplaceAll(tt.steps, ".", " . "), "/", " / ")) {
					switch c[0] {
					case '+':
						r.join(c[1:])
					case '-':
						r.leave(c[1:])
					case '.':
						r.pass(short)
					case '/':
						got = append(got, r.told())
					}
				}
				r.pass(2 * newsInterval)
				got = append(got, r.told())
				if s := strings.TrimSuffix(strings.Join(got, "/"), "/"); sortNews(s) != sortNews(tt.want) {
					t.Errorf("told %q, want %q", s, tt.want)
				}
				checkQuiet(t, r.Topics, r.loops...)
				if r.shard("a").topics["a"].rare.news != nil {
					t.Error("something is kept when nothing is to be told")
				}
			})
		})
	}
}

// sortNews makes the order within one telling meaningless.
func sortNews(s string) string {
	var out []string
	for part := range strings.SplitSeq(s, ";") {
		head := strings.TrimLeft(part, "|/")
		var all []string
		for i := 0; i+1 < len(head); i += 2 {
			all = append(all, head[i:i+2])
		}
		slices.Sort(all)
		out = append(out, part[:len(part)-len(head)]+strings.Join(all, ""))
	}
	return strings.Join(out, ";")
}

// News are for those who ask: not for plain subscribers, with or without a
// tracking, nor for one that is held back; and of those who let them be told.
func TestNewsAreForThoseWhoAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newNewsRig(t, Options{Default: NamespaceOptions{HistorySize: 1, HistoryTTL: time.Minute}})
		subscribe := func(l *fakeLoop, o SubscribeOptions) *fakePeer {
			p := newFakePeer(r.Topics, l, session.EncodingJSON)
			if err := r.Subscribe(&p.s, "a", o); err != nil {
				t.Fatal(err)
			}
			r.Join(&p.s, "a")
			return p
		}
		var silent, told []*fakePeer
		for _, l := range r.loops {
			silent = append(silent, subscribe(l, SubscribeOptions{}), subscribe(l, SubscribeOptions{Info: []byte("1")}),
				subscribe(l, SubscribeOptions{Position: true, News: true}))
			told = append(told, subscribe(l, SubscribeOptions{News: true}))
		}
		mute := newFakePeer(r.Topics, r.loops[0], session.EncodingNone)
		if err := r.Subscribe(&mute.s, "a", SubscribeOptions{News: true}); err != nil {
			t.Fatal(err)
		}
		r.join("x")
		r.Join(&r.peers["x"].s, "a") // once is enough
		r.pass(2 * newsInterval)
		r.leave("x")
		r.pass(2 * newsInterval)
		for i, p := range append(silent, mute) {
			if p.text() != "" {
				t.Errorf("silent peer %d got %q", i, p.text())
			}
		}
		for i, p := range append(told, r.all) {
			if p.text() != "+x;|-x;" {
				t.Errorf("peer %d got %q", i, p.text())
			}
		}
		if got := r.peers["x"].text(); got != "" {
			t.Errorf("who did not ask got %q", got)
		}
		if c := r.Counts(); c.Deliveries != 0 {
			t.Errorf("counted as publications: %+v", c)
		}
		checkQuiet(t, r.Topics, r.loops...)
	})
}

// Publications and news keep their order.
func TestNewsBetweenPublications(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newNewsRig(t, Options{})
		mustPublish(t, r.Topics, "a", "1")
		mustPublish(t, r.Topics, "a", "2")
		r.join("x")
		mustPublish(t, r.Topics, "a", "3")
		r.pass(newsInterval)
		if got := r.told(); got != "j1;j2;|+x;|j3;" {
			t.Errorf("got %q", got)
		}
		if got := r.peers["x"].text(); got != "j3;" {
			t.Errorf("who came got %q", got)
		}
		r.pass(newsInterval)
	})
}

func TestNewsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newNewsRig(t, Options{})
		const n = newsMost + 100
		for i := range n {
			r.join(fmt.Sprint(i, ";")) // the first goes at once
		}
		if got := len(r.shard("a").topics["a"].rare.news.waiting); got != newsMost {
			t.Errorf("%d wait", got)
		}
		if c := r.Counts(); c.NewsDropped != n-newsMost-1 {
			t.Errorf("%d dropped", c.NewsDropped)
		}
		r.pass(1)
		if got := r.told(); got != "+0;;" {
			t.Errorf("at first: %q", got)
		}
		told := 0
		for i := range newsMost / newsBatch {
			r.pass(newsInterval)
			if i == 0 {
				r.leave(fmt.Sprint(newsBatch+1, ";")) // one that still waits
			}
			want := newsBatch
			if i == newsMost/newsBatch-1 {
				want--
			}
			if len(r.all.frames) != 1 {
				t.Fatalf("%d tellings", len(r.all.frames))
			}
			n := strings.Count(r.told(), "+")
			if n != want {
				t.Errorf("%d at once, want %d", n, want)
			}
			told += n
		}
		r.pass(newsInterval)
		if got := r.told(); told != newsMost-1 || got != "" {
			t.Errorf("%d told, then %q", told, got)
		}
		checkQuiet(t, r.Topics, r.loops...)
	})
}

// What is to be told waits for no loop: without room it is dropped, and counted.
func TestNewsWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newNewsRig(t, Options{})
		r.loops[0].limit = 0
		r.join("x")
		r.join("y")
		r.pass(2 * newsInterval)
		if got := r.told(); got != "" || r.Counts().NewsDropped != 2 {
			t.Errorf("told %q, %d dropped", got, r.Counts().NewsDropped)
		}
		checkQuiet(t, r.Topics, r.loops...)
	})
}

// The last to leave takes the timer along, and one who comes then begins anew.
func TestNewsEndWithTheTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newNewsRig(t, Options{})
		r.join("x")
		r.join("y")
		timer := r.shard("a").topics["a"].rare.news.timer
		r.leave("x")
		r.leave("y")
		r.Leave(&r.all.s)
		if timer.Stop() {
			t.Error("the timer of a topic that is gone runs on")
		}
		if c := r.Counts(); c.Topics != 0 {
			t.Errorf("counts %+v", c)
		}
		if err := r.Subscribe(&r.all.s, "a", SubscribeOptions{News: true}); err != nil {
			t.Fatal(err)
		}
		r.join("z")
		r.pass(2 * newsInterval)
		if got := r.told(); got != "+z;" {
			t.Errorf("then: %q", got)
		}
		checkQuiet(t, r.Topics, r.loops...)
	})
}

// Who moves to another server goes without a word.
func TestQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newNewsRig(t, Options{})
		r.join("x")
		r.pass(2 * newsInterval)
		r.Quiet(&r.peers["x"].s)
		r.Leave(&r.peers["x"].s)
		r.pass(2 * newsInterval)
		if got := r.told(); got != "+x;" {
			t.Errorf("told %q", got)
		}
	})
}

// TestNewsForOthers: what this node's subscribers hear of one another, the
// subscribers of other nodes are told as well, also when the last one leaves here;
// and what others tell goes to those of this node alone.
func TestNewsForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		r := newNewsRig(t, Options{Told: func(name string, news []News) {
			b, _ := plainJoined()[session.EncodingJSON](name, news)
			told = append(told, name+"="+string(b))
		}})
		others := func() string {
			out := strings.Join(told, "|")
			told = nil
			return out
		}
		r.join("x")
		r.join("y")
		r.pass(2 * newsInterval)
		if got := others(); got != "a=+x;|a=+y;" {
			t.Errorf("others hear %q", got)
		}
		if got := r.told(); got != "+x;|+y;" {
			t.Errorf("here is told %q", got)
		}
		r.TellRemote("a", []News{{Client: ClientInfo{Client: "far"}}, {Left: true, Client: ClientInfo{Client: "off"}}})
		r.TellRemote("b", []News{{Client: ClientInfo{Client: "far"}}})
		r.pass(0)
		if got := r.told(); got != "+far-off;" || others() != "" {
			t.Errorf("told %q", got)
		}
		// The last one goes while something waits to be told.
		r.Unsubscribe(&r.all.s, "a")
		r.leave("x")
		r.join("z")
		r.leave("y")
		r.leave("z")
		r.pass(2 * newsInterval)
		if got := others(); got != "a=-x;|a=+z-y;|a=-z;" {
			t.Errorf("others hear %q", got)
		}
		checkQuiet(t, r.Topics, r.loops...)
	})
}

// TestNewsFromOthersAreBounded: where an inbox has no room, they are dropped and
// counted.
func TestNewsFromOthersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newNewsRig(t, Options{})
		r.loops[0].limit = 0
		r.TellRemote("a", []News{{Client: ClientInfo{Client: "far"}}, {Client: ClientInfo{Client: "off"}}})
		r.pass(0)
		if n := r.Counts().NewsDropped; n != 2 || r.told() != "" {
			t.Errorf("%d dropped", n)
		}
		r.loops[0].limit = fakeRoom
	})
}
