// What GitOps tools make of objects, by the code that they run: kstatus, Flux's evaluation of CEL, Argo CD's Lua.
//
//	gitops-health kstatus < objects.json
//	gitops-health flux EXPRESSIONS.json < objects.json
//	gitops-health argo SCRIPT.lua < objects.json
//
// It reads a list of objects, and writes a list of what each is said to be.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

type judge func(*unstructured.Unstructured) (health, error)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string, in io.Reader, out io.Writer) error {
	judge, err := chosen(arguments)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	var documents []json.RawMessage
	if err := json.Unmarshal(text, &documents); err != nil {
		return err
	}
	found := make([]health, 0, len(documents))
	for _, document := range documents {
		// Kubernetes' own decoder: numbers without a point are integers.
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(document); err != nil {
			return err
		}
		each, err := judge(object)
		if err != nil {
			return err
		}
		found = append(found, each)
	}
	return json.NewEncoder(out).Encode(found)
}

func chosen(arguments []string) (judge, error) {
	if len(arguments) == 1 && arguments[0] == "kstatus" {
		return kstatus, nil
	}
	if len(arguments) != 2 {
		return nil, errors.New("say kstatus, flux EXPRESSIONS or argo SCRIPT")
	}
	content, err := os.ReadFile(arguments[1])
	if err != nil {
		return nil, err
	}
	switch arguments[0] {
	case "flux":
		return flux(content)
	case "argo":
		return argo(string(content)), nil
	}
	return nil, fmt.Errorf("%s is none of kstatus, flux and argo", arguments[0])
}

func kstatus(object *unstructured.Unstructured) (health, error) {
	result, err := status.Compute(object)
	if err != nil {
		return health{}, err
	}
	return health{string(result.Status), result.Message}, nil
}

// The expressions are those of one item of a Kustomization's healthCheckExprs.
func flux(expressions []byte) (judge, error) {
	var parsed kustomize.HealthCheckExpressions
	if err := json.Unmarshal(expressions, &parsed); err != nil {
		return nil, err
	}
	evaluator, err := cel.NewStatusEvaluator(&parsed)
	if err != nil {
		return nil, err
	}
	return func(object *unstructured.Unstructured) (health, error) {
		result, err := evaluator.Evaluate(context.Background(), object)
		if err != nil {
			return health{}, err
		}
		return health{string(result.Status), result.Message}, nil
	}, nil
}

// As Argo CD runs a health check that the configuration gives: the object is the global obj, the libraries are base, table and package
// (os, with its clock alone, is left out), and a second is all the time there is. The script returns a table of status and message.
func argo(script string) judge {
	return func(object *unstructured.Unstructured) (health, error) {
		state := lua.NewState(lua.Options{SkipOpenLibs: true})
		defer state.Close()
		for name, library := range map[string]lua.LGFunction{
			lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
		} {
			opened := lua.P{Fn: state.NewFunction(library), Protect: true}
			if err := state.CallByParam(opened, lua.LString(name)); err != nil {
				return health{}, err
			}
		}
		limited, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		state.SetContext(limited)
		state.SetGlobal("obj", luaValue(state, object.Object))
		if err := state.DoString(script); err != nil {
			return health{}, err
		}
		table, ok := state.Get(-1).(*lua.LTable)
		if !ok {
			return health{}, fmt.Errorf("the script returns a %s, not a table", state.Get(-1).Type())
		}
		return health{lua.LVAsString(table.RawGetString("status")), lua.LVAsString(table.RawGetString("message"))}, nil
	}
}

func luaValue(state *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case bool:
		return lua.LBool(value)
	case string:
		return lua.LString(value)
	case int64:
		return lua.LNumber(value)
	case float64:
		return lua.LNumber(value)
	case []any:
		list := state.NewTable()
		for _, each := range value {
			list.Append(luaValue(state, each))
		}
		return list
	case map[string]any:
		table := state.NewTable()
		for key, each := range value {
			table.RawSetString(key, luaValue(state, each))
		}
		return table
	}
	return lua.LNil
}
