package perch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"perch/cluster"
	"perch/handler"
	"perch/internal/stats"
	"perch/topic"
)

// nodeTimes are those of cluster.NodesOptions, for tests.
type nodeTimes struct{ interval, gone, timeout time.Duration }

// wireNodes makes the table of other nodes, where there can be any.
func (s *Server) wireNodes() error {
	if s.link == nil || s.link.Alone() {
		return nil
	}
	version, _ := buildVersion()
	s.nodes = cluster.NewNodes(cluster.NodesOptions{
		Link: s.link, Node: s.node, Version: version, Started: s.started, Answer: s.answerNode, News: s.takeNews, Logger: s.log,
		Interval: s.opts.nodeTimes.interval, Gone: s.opts.nodeTimes.gone, Timeout: s.opts.nodeTimes.timeout,
	})
	s.nodes.SetDigest(s.opts.digest())
	return nil
}

// startNodes announces this node and learns of the others.
func (s *Server) startNodes(ctx context.Context) error {
	if s.nodes == nil {
		return nil
	}
	return s.nodes.Start(ctx)
}

// digest stands for the namespaces: nodes of one cluster have the same. What is
// not set does not count, so that a version that knows more keys does not disagree.
func (o *Options) digest() string {
	list := slices.Clone(o.Topics.Namespaces)
	slices.SortFunc(list, func(a, b topic.NamespaceOptions) int { return strings.Compare(a.Name, b.Name) })
	h := sha256.New()
	for _, ns := range append([]topic.NamespaceOptions{o.Topics.Default}, list...) {
		v := reflect.ValueOf(ns)
		fmt.Fprintf(h, "%q\n", ns.Name)
		for i := range v.NumField() {
			if f := v.Field(i); !f.IsZero() {
				fmt.Fprintf(h, "%s=%q\n", v.Type().Field(i).Tag.Get("koanf"), fmt.Sprint(f.Interface()))
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// peers are the other nodes as the handlers see them; nil: there never are any.
func (s *Server) peers() handler.Peers {
	if s.nodes == nil {
		return nil
	}
	return peers{s.nodes}
}

type peers struct{ *cluster.Nodes }

// Ask implements handler.Peers.
func (p peers) Ask(q handler.PeerQuestion, done func([]handler.PeerAnswer, error)) {
	p.Nodes.Ask(cluster.Question(q), func(answers []cluster.Answer, err error) {
		out := make([]handler.PeerAnswer, len(answers))
		for i, a := range answers {
			out[i] = handler.PeerAnswer{Node: a.Node, Name: a.Name, Data: a.Data, Err: peerError(a.Err)}
		}
		done(out, peerError(err))
	})
}

// peerErrors says the same in the words of the two packages, which don't know one
// another.
var peerErrors = []struct{ cluster, handler error }{
	{cluster.ErrBusy, handler.ErrPeersBusy}, {cluster.ErrTooLarge, handler.ErrPeersTooLarge},
	{cluster.ErrUnavailable, handler.ErrPeersAway}, {cluster.ErrUnanswered, handler.ErrPeersSilent},
}

func peerError(err error) error {
	for _, e := range peerErrors {
		if errors.Is(err, e.cluster) {
			return e.handler
		}
	}
	return err
}

// answerNode does what another node asks for.
func (s *Server) answerNode(ctx context.Context, method string, params []byte) ([]byte, error) {
	data, err := s.answers(ctx, method, params)
	for _, e := range peerErrors {
		if errors.Is(err, e.handler) {
			return nil, e.cluster
		}
	}
	return data, err
}

// tellNodes brings the news of this node's subscribers to the others. It runs
// under a lock of the topics.
func (s *Server) tellNodes(name string, news []topic.News) {
	if s.nodes.Alone() {
		return
	}
	size := 0
	for i := range news {
		c := &news[i].Client
		size += 64 + len(c.User) + len(c.Client) + len(c.ConnInfo) + len(c.ChanInfo)
	}
	s.nodes.Tell(name, size, func() [][]byte {
		parts, err := handler.EncodeNews(news)
		if err != nil {
			s.log.Error("news not encoded", "topic", name, "err", err)
			return nil
		}
		return parts
	})
}

// takeNews brings the news of another node to the subscribers of this one.
func (s *Server) takeNews(name string, data []byte) {
	if !s.topics.Interested(name) {
		return
	}
	news, err := handler.DecodeNews(data)
	if err != nil {
		s.log.Debug("news of a node not understood", "topic", name, "err", err)
		return
	}
	if len(news) > 0 {
		s.topics.TellRemote(name, news)
	}
}

// apiOptions are what the server API works with, also for other nodes.
func (s *Server) apiOptions() handler.APIOptions {
	version, _ := buildVersion()
	name := "perch"
	if s.link != nil {
		name = s.nodeName()
	}
	return handler.APIOptions{
		KeyNow: func() string { return s.live.Load().API.Key }, Node: s.node, Name: name, Version: version, Started: s.started,
		Loops: s.net, Registry: s.registry, Topics: s.topics, Sessions: s.commands, Peers: s.peers(), Observe: s.observeAPI, Logger: s.log,
		Clients: handler.ClientsOptions{Authority: s.authority.Load, CheckTopic: s.checkTopic},
	}
}

// checkTopic tells what is wrong with the name of a topic, in the words of the
// configuration. Safe from any goroutine.
func (s *Server) checkTopic(name string) error {
	_, err := s.topics.Namespace(name)
	if err == nil {
		return nil
	}
	if ns := topic.NamespaceOf(name); ns != "" && !hasNamespace(&s.live.Load().Topics, ns) {
		return fmt.Errorf("the namespace of %q is not in topics.namespaces", name)
	}
	return fmt.Errorf("%q is empty, longer than topics.max_length or no name of its namespace", name)
}

// knownNodes is how many nodes there are, with this one; 0: there is no cluster.
func (s *Server) knownNodes() int {
	if s.nodes == nil {
		return 0
	}
	return 1 + s.nodes.Counts().Peers
}

// nodeStats is what /metrics shows of the other nodes; nil: there is no cluster.
func (s *Server) nodeStats() *stats.Nodes {
	if s.nodes == nil {
		return nil
	}
	c := s.nodes.Counts()
	return &stats.Nodes{
		Known: int64(1 + c.Peers), Disagreeing: int64(c.Disagreeing),
		Changes: map[string]uint64{"joined": c.Joined, "left": c.Left, "gone": c.Gone},
		Surveys: int64(c.Surveys), Asked: c.Asked, Unanswered: c.Unanswered, Busy: c.Busy, Answered: c.Answered, Refused: c.Refused,
		Unsaid: c.Unsaid, Malformed: c.Broken,
	}
}
