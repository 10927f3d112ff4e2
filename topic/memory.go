package topic

// Memory is the broker of a single node: publications go to this node's
// subscribers and nowhere else. It keeps no history.
type Memory struct {
	receiver Receiver
}

// NewMemory makes the in-memory broker.
func NewMemory() *Memory { return &Memory{} }

// Start implements Broker.
func (m *Memory) Start(r Receiver) error {
	m.receiver = r
	return nil
}

// Publish implements Broker; done is called before it returns.
func (m *Memory) Publish(topic string, p *Publication, done func(Position, error)) {
	done(Position{}, m.receiver.Deliver(topic, Delivery{Publication: p}))
}

// History implements Broker: there is none.
func (m *Memory) History(_ string, _ Filter, done func([]*Publication, Position, error)) {
	done(nil, Position{}, ErrNotAvailable)
}

// Subscribe implements Broker.
func (m *Memory) Subscribe(_ string, done func(error)) { done(nil) }

// Unsubscribe implements Broker.
func (m *Memory) Unsubscribe(_ string, done func(error)) { done(nil) }

// Close implements Broker.
func (m *Memory) Close() error { return nil }
