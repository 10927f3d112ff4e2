package handler

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
)

// apiBatchWorkers is how many commands of a parallel batch are under way at
// once. They mostly wait.
const apiBatchWorkers = 64

type apiBatchRequest struct {
	Commands []json.RawMessage `json:"commands"`
	Parallel bool              `json:"parallel"`
}

type apiBatchResult struct {
	// A reply is the method with its result, or "error" with an error.
	Replies []map[string]any `json:"replies"`
}

type apiCommand struct {
	name string
	call apiCall
}

// bindBatch reads all commands before the first is done: a malformed one
// refuses the whole batch.
func (a *api) bindBatch(params []byte) (apiCall, error) {
	var r apiBatchRequest
	if err := json.Unmarshal(params, &r); err != nil {
		return nil, err
	}
	if len(r.Commands) > apiMaxItems {
		return func(context.Context) (any, *apiError) { return nil, apiLimitExceeded }, nil
	}
	commands := make([]apiCommand, len(r.Commands))
	for i, raw := range r.Commands {
		var err error
		if commands[i], err = a.bindCommand(raw); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context) (any, *apiError) {
		return apiBatchResult{a.runBatch(ctx, commands, r.Parallel)}, nil
	}, nil
}

// bindCommand reads {"<method>": {…}}. Methods with null count as not there:
// generated clients write every field.
func (a *api) bindCommand(raw []byte) (apiCommand, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return apiCommand{}, err
	}
	unknown := apiCommand{call: func(context.Context) (any, *apiError) { return nil, apiMethodNotFound }}
	for name, params := range fields {
		if string(params) == "null" {
			delete(fields, name)
		}
	}
	if len(fields) > 1 {
		return apiCommand{}, errors.New("a command has more than one method")
	}
	for name, params := range fields {
		method, ok := a.methods[name]
		if !ok {
			break
		}
		call, err := method(params)
		return apiCommand{name, call}, err
	}
	return unknown, nil
}

func (a *api) runBatch(ctx context.Context, commands []apiCommand, parallel bool) []map[string]any {
	replies := make([]map[string]any, len(commands))
	one := func(i int) {
		result, fault := a.run(ctx, commands[i].name, commands[i].call)
		if fault != nil {
			replies[i] = map[string]any{"error": fault}
		} else {
			replies[i] = map[string]any{commands[i].name: result}
		}
	}
	if !parallel {
		for i := range commands {
			one(i)
		}
		return replies
	}
	var wg sync.WaitGroup
	places := make(chan struct{}, apiBatchWorkers)
	for i := range commands {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			one(i)
		})
	}
	wg.Wait()
	return replies
}
