package handler

import (
	"errors"
	"time"

	"perch/session"
)

// Peers are the other nodes of a cluster. All methods are safe from any
// goroutine and do not block.
type Peers interface {
	// Alone tells that there is nobody to ask.
	Alone() bool
	// Ask asks other nodes and calls done once with the answers of all that are
	// alive, on any goroutine or before it returns. done does not block. An error
	// says that nobody was asked: ErrPeersBusy, ErrPeersTooLarge, ErrPeersAway.
	Ask(q PeerQuestion, done func([]PeerAnswer, error))
}

// PeerQuestion is what other nodes are asked: a method of the server API and its
// parameters.
type PeerQuestion struct {
	Node   session.Node // the only one that is asked; 0: all
	Method string
	Params []byte // nobody changes them any more
	// Shared: whoever asks the same while it is under way gets the same answers.
	Shared  bool
	Timeout time.Duration // 0: as the cluster says
}

// PeerAnswer is what one node said. Err is one of the errors of Peers.
type PeerAnswer struct {
	Node session.Node
	Name string
	Data []byte // shared: nobody changes it
	Err  error
}

// The errors of Peers. Any other says that a node could not do what was asked.
var (
	// ErrPeersAway is returned where the cluster can't be reached, ErrPeersSilent
	// stands for an answer that has not come in time.
	ErrPeersAway   = errors.New("handler: other nodes can't be reached")
	ErrPeersSilent = errors.New("handler: node has not answered")
	// ErrPeersBusy is returned where there is no room for a question, here or there,
	// ErrPeersTooLarge for a question or an answer that is not carried.
	ErrPeersBusy     = errors.New("handler: too many questions to other nodes")
	ErrPeersTooLarge = errors.New("handler: too large for other nodes")
)

// firstPeerError is the first of the answers' errors; err goes before them.
func firstPeerError(answers []PeerAnswer, err error) error {
	for i := 0; err == nil && i < len(answers); i++ {
		err = answers[i].Err
	}
	return err
}

// noPeers are those of a server that is alone.
type noPeers struct{}

func (noPeers) Alone() bool                                        { return true }
func (noPeers) Ask(_ PeerQuestion, done func([]PeerAnswer, error)) { done(nil, nil) }
